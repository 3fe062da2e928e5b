"""How fast a training step of the volumetric network is, against what the machine can do.

    python benchmarks/unet3d_step.py [short plain] [--side 32 32 16] [--threads 1 2] [--repeats 3]
    python benchmarks/unet3d_step.py --device cuda [--side 64 64 16]

Things take turns in one process, on the same threads: forward and backward of the network (`short`:
4 frames, 128 features, four resamplings, ×4 super-resolution, 14.5 million parameters; `plain`: two
resamplings, none above), forward and backward of each of its convolutions on its own, as
`torch.nn.Conv3d` at the same shape, once for every time that the network has it, and the machine at
its best: one convolution from 128 to 128 features at the full resolution.

On a GPU steps are taken as in training, in bf16 with features last; beside them stand the same with
PyTorch's own norms (`NEUROCOMPANION_FAST=no`) and the rate of a large product of bf16 matrices, and
the memory of a step stands beside what `models.step_bytes` says.

Told: the step's rate, how many times as fast it is as the other way, and its share of the best.
Medians. Seconds are the processor's when one thread computes, so that others' work on the machine
does not count, and of the clock otherwise.
"""

import argparse
import os
from collections import Counter
from functools import partial
from unittest.mock import patch

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch
from torch import nn

from neurocompanion import core
from neurocompanion.zebrafish.models import UNet3D, flops, step_bytes
from turns import by_clock, product, row, runs, tell

NETS = {"short": dict(context=4, resample=4, super_resolve=2), "plain": dict(resample=2)}


def shapes(net, x):
    "How often the network convolves what: features in and out, voxels."
    seen, hooks = Counter(), []
    note = lambda m, given, made: seen.update([(m.in_channels, m.out_channels,
                                                *given[0].shape[2:])])
    for m in net.modules():
        if isinstance(m, nn.Conv3d): hooks.append(m.register_forward_hook(note))
    with torch.no_grad(): net(x, 3)
    for hook in hooks: hook.remove()
    return seen


def alone(reads, width, *size, first=False):
    "Forward and backward of one convolution."
    conv, x = nn.Conv3d(reads, width, 3, padding=1), torch.randn(1, reads, *size)
    along = torch.randn(1, width, *size)
    x.requires_grad_(not first)

    def run():
        conv.zero_grad()
        x.grad = None
        conv(x).backward(along)
    return run


def stepper(name, side, device, width=128):
    "A network, a step of it, and its operations in GFLOP."
    torch.manual_seed(0)
    net = UNet3D(**NETS[name], width=width).train().to(device)
    half = torch.device(device).type == "cuda"
    if half: net.to(memory_format=torch.channels_last_3d)
    x, lead = torch.randn(1, net.context, *side, device=device), torch.full((1,), 3, device=device)
    with torch.no_grad(): y = torch.randn_like(net(x, lead))

    def step(fast=True):
        with patch.dict(os.environ, {} if fast else {"NEUROCOMPANION_FAST": "no"}):
            net.zero_grad()
            with torch.autocast("cuda", torch.bfloat16, enabled=half): said = net(x, lead)
            (said.float() - y).abs().mean().backward()
    return net, step, 3 * flops(net, side) / 1e9


def rates(gflop, seconds): return [gflop / t for t in seconds]


def on_processor(name, side, threads, repeats):
    "The step, its convolutions alone, and the best of them."
    net, step, gflop = stepper(name, side, "cpu")
    parts = shapes(net, torch.randn(1, net.context, *side))
    own = [alone(*k, first=k[0] == net.context) for k in parts]
    clock = "processor" if threads == 1 else "wall"
    seen = by_clock(runs([step, alone(128, 128, *side), *own], repeats), clock)
    ours, bare = rates(gflop, seen[0]), [sum(n * t for n, t in zip(parts.values(), turn))
                                         for turn in zip(*seen[2:])]
    best = rates(3 * 2 * 27 * 128**2 * side[0] * side[1] * side[2] / 1e9, seen[1])
    return row("zebrafish", f"U-Net {name}, a step, {' x '.join(map(str, side))} voxels", "GFLOP/s",
               ours, rates(gflop, bare), "its convolutions alone", higher=True, threads=threads,
               clock=clock, limit=(best, "the best convolution's GFLOP/s",
                                   [a / b for a, b in zip(ours, best)]))


def on_gpu(name, side, device, repeats, steps=5):
    "The step with both norms, the best product, and memory."
    net, step, gflop = stepper(name, side, device)
    multiply, amount = product(8192, device, torch.bfloat16)
    many = lambda f: [f() for _ in range(steps)]
    torch.cuda.reset_peak_memory_stats(device)
    step()
    most = torch.cuda.max_memory_allocated(device) + 8 * sum(p.numel() for p in net.parameters())
    seen = by_clock(runs([partial(many, f) for f in (step, partial(step, False), multiply)],
                         repeats), "wall")
    ours, plain, best = (rates(n * steps, t) for n, t in zip((gflop, gflop, amount), seen))
    what = f"U-Net {name}, a step, {' x '.join(map(str, side))} voxels, bf16"
    yield row("zebrafish", what, "GFLOP/s", ours, plain, "PyTorch's norms", higher=True,
              device=device, limit=(best, "a product of bf16 matrices, GFLOP/s",
                     [a / b for a, b in zip(ours, best)]), aim=("share", 0.5))
    yield row("zebrafish", f"{what}, memory", "GiB", [most / 2**30],
              [step_bytes(net, side, "bf16")["most"] / 2**30], "as computed", device=device)


def for_table(device="cpu", quick=False, nets=tuple(NETS), side=None, threads=None, repeats=None):
    "A row for each network, and number of threads."
    gpu = torch.device(device).type == "cuda"
    side = side or ((16, 16, 8) if quick else (64, 64, 16) if gpu else (32, 32, 16))
    repeats = repeats or (1 if quick else 3)
    for name in nets[-1:] if quick else nets:
        if gpu: yield from on_gpu(name, side, device, repeats)
        else:
            for n in threads or ((1,) if quick else (1, 2)):
                torch.set_num_threads(n)
                yield on_processor(name, side, n, repeats)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("nets", nargs="*", default=list(NETS), help="short, plain")
    ask.add_argument("--side", nargs=3, type=int, help="voxels x y z")
    ask.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    ask.add_argument("--repeats", type=int, default=3)
    ask.add_argument("--device", default="cpu")
    asked = ask.parse_args()
    core.keep_memory()
    print(f"PyTorch {torch.__version__}, noise in place of frames, batches of one")
    for r in for_table(asked.device, False, asked.nets, asked.side and tuple(asked.side),
                       asked.threads, asked.repeats): print(tell(r), flush=True)
