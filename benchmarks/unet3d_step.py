"""How fast a training step of the volumetric network is, against the machine's own convolution.

    python benchmarks/unet3d_step.py [short plain] [--side 32 32 16] [--threads 1 2] [--repeats 3]

Three things take turns in one process, on the same threads: forward and backward of the network
(`short`: 4 frames, 128 features, four resamplings, ×4 super-resolution, 14.5 million parameters;
`plain`: two resamplings, none above), forward and backward of each of its convolutions on its own,
as `torch.nn.Conv3d` at the same shape, once for every time that the network has it, and one
convolution from 128 to 128 features at the full resolution, whose rate is the machine's best.

Printed: seconds of a step, GFLOP/s, the time of the convolutions on their own as a share of the
step, and the step's rate as a share of the best one. Medians. Seconds are the processor's when one
thread computes, so that others' work on the machine does not count, and of the clock otherwise.
"""

import argparse
import os
from collections import Counter

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch
from torch import nn

from neurocompanion import core
from neurocompanion.zebrafish.models import UNet3D, flops
from turns import measure

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


def compare(name, side, threads, repeats):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = UNet3D(**NETS[name]).train()
    x = torch.randn(1, net.context, *side)
    y = torch.randn_like(net(x, 3)).detach()

    def step():
        net.zero_grad()
        (net(x, 3) - y).abs().mean().backward()

    parts = shapes(net, x)
    own = [alone(*k, first=k[0] == net.context) for k in parts]
    best = alone(128, 128, *side)
    timed = measure([step, best, *own], repeats)
    t, t_best, *t_own = [cpu if threads == 1 else wall for wall, cpu in timed]
    bare = sum(n * t for n, t in zip(parts.values(), t_own))
    flop = 3 * flops(net, side) / 1e9
    rate = 3 * 2 * 27 * 128**2 * side[0] * side[1] * side[2] / 1e9 / t_best
    print(f"{name:5} {tuple(side)} voxels, {threads} thread(s): step {t:.2f} s, {flop:.0f} GFLOP, "
          f"{flop / t:.0f} GFLOP/s; its {sum(parts.values())} convolutions alone {bare:.2f} s, "
          f"{bare / t:.0%} of the step; best convolution {rate:.0f} GFLOP/s, the step reaches "
          f"{flop / t / rate:.0%} of it", flush=True)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("nets", nargs="*", default=list(NETS), help="short, plain")
    ask.add_argument("--side", nargs=3, type=int, default=[32, 32, 16], help="voxels x y z")
    ask.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    ask.add_argument("--repeats", type=int, default=3)
    asked = ask.parse_args()
    core.keep_memory()
    print(f"PyTorch {torch.__version__}, noise in place of frames, batches of one")
    for threads in asked.threads:
        for name in asked.nets: compare(name, asked.side, threads, asked.repeats)
