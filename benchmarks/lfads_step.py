"""Seconds a training step of LFADS takes, beside the same network with plain loops.

    python benchmarks/lfads_step.py [laptop lorenz chaotic maze] [--threads 1 2] [--repeats 5]

All run in turn, in the same process: forward, backward, clipping and AdamW on one batch, with
dropout 0.3 and coordinated dropout 0.5, in networks of the paper's sizes. "Plain" is written with
PyTorch's own layers: it walks through time step by step, autograd walks back, dropout is
`nn.functional.dropout`, the loss PyTorch's own. It follows the layout of a public implementation,
whose times at the same shapes, on two quiet cores, are printed beside. Ours runs with compiled
loops, where there is a compiler, and without. "laptop" is a network of the laptop sweeps' size.

Medians over alternating runs: seconds of wall time, and of processor time, which other work on the
machine disturbs less. GFLOP/s count products only, beside what one large product reaches here.
"""

import argparse
import os

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch
import torch.nn.functional as F
from torch import nn

from neurocompanion import core
from neurocompanion.autolfads import cells, models
from neurocompanion.fast import lfads
from turns import measure

SHAPES = {  # batch, steps, neurons; the public implementation at 2 threads and 1 thread, seconds
    "lorenz": (128, 100, 60, 0.505, 0.629),
    "chaotic": (500, 100, 50, 1.30, 2.08),
    "maze": (256, 45, 182, 0.501, 0.768),
    "laptop": (64, 50, 30, None, None),
}
SIZES = dict(ic_encoder=100, ic=100, ci_encoder=80, controller=80, inputs=4, generator=100,
             factors=40)
SMALL = dict(ic_encoder=32, ic=32, ci_encoder=32, controller=32, inputs=10, generator=48,
             factors=30)
HYPER = models.Hyper(dropout=0.3, cd_rate=0.5)


def plain_states(x, h, cell):
    "One direction, step by step: b t i -> b t h."
    states = []
    for step in x.transpose(0, 1):
        h = cells.gru_step(step, h, *cell.weights())
        states.append(h)
    return torch.stack(states, 1)


def plain_both(x, h0, pair):
    forth = plain_states(x, h0[0].expand(len(x), -1), pair[0])
    return forth, plain_states(x.flip(1), h0[1].expand(len(x), -1), pair[1]).flip(1)


def plain_loss(m, x, y, hyper):
    "The loss of the same network with plain loops."
    kept = torch.bernoulli(torch.full_like(x, 1 - hyper.cd_rate))
    drop = lambda a: F.dropout(a, hyper.dropout)
    x = drop(x * kept / (1 - hyper.cd_rate))
    forth, back = plain_both(x, m.ic_h0, m.ic_encoder)
    last = torch.cat([forth[:, -1], back[:, 0]], 1)
    ic_mean, logvar = m.ic_linear(drop(last)).chunk(2, 1)
    ic_std = (logvar.exp() + 1e-4).sqrt()
    forth, back = plain_both(x, m.ci_h0, m.ci_encoder)
    ci = torch.cat([F.pad(forth, (0, 0, 1, 0))[:, :-1], F.pad(back, (0, 0, 0, 1))[:, 1:]], 2)
    g = m.ic_to_g0(ic_mean + ic_std * torch.randn_like(ic_std))
    c, f, seen = m.con_h0.expand(len(x), -1), F.linear(drop(g), unit_rows(m)), []
    for step in ci.transpose(0, 1):
        c = cells.gru_step(drop(torch.cat([step, f], 1)), c, *m.controller.weights())
        mean, logvar = m.co_linear(c).chunk(2, 1)
        std = logvar.exp().sqrt()
        g = cells.gru_step(mean + std * torch.randn_like(std), g, *m.generator.weights())
        f = F.linear(drop(g), unit_rows(m))
        seen.append(torch.cat([mean, std, f], 1))
    mean, std, f = torch.stack(seen, 1).split([m.inputs, m.inputs, f.shape[1]], 2)
    each = F.poisson_nll_loss(m.readout(f), y, full=True, reduction="none")
    nll = (each * (1 - kept) + (each * kept).detach()).mean()
    kl = hyper.kl_ic * models.kl_ic(m, ic_mean, ic_std) + hyper.kl_co * models.kl_co(m, mean, std)
    return 1e4 * (nll + kl + models.l2(m, hyper.l2_gen, hyper.l2_con))


def unit_rows(m): return F.normalize(m.factors.weight, dim=1)


def not_compiled(loss):
    "A loss by the loops in PyTorch; the way back follows the way forward."
    def run(model):
        compiled, lfads.compiled = lfads.compiled, lambda: None
        try: return loss(model)
        finally: lfads.compiled = compiled
    return run


def train_step(loss, model, optimiser):
    def step():
        optimiser.zero_grad()
        loss(model).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 200)
        optimiser.step()
    return step


def gigaflops(s, batch, steps, neurons):
    "Products of one training step: forward, gradients of the weights, gradients of what is read."
    gru = lambda reads, units: 3 * units * (reads + units)
    encoders = 2 * (gru(neurons, s["ic_encoder"]) + gru(neurons, s["ci_encoder"]))
    data = 2 * 3 * neurons * (s["ic_encoder"] + s["ci_encoder"])          # no gradient by the data
    chain = (gru(2 * s["ci_encoder"] + s["factors"], s["controller"])
             + gru(s["inputs"], s["generator"]) + 2 * s["controller"] * s["inputs"]
             + s["generator"] * s["factors"] + s["factors"] * neurons)
    return 2 * batch * steps * (3 * (encoders + chain) - data) / 1e9


def peak():
    "GFLOP/s of a large product."
    a, b = torch.randn(2, 1500, 1500)
    [(wall, _)] = measure([lambda: a @ b], 5)
    return 2 * 1500**3 / 1e9 / wall


def compare(name, threads, repeats):
    batch, steps, neurons, *public = SHAPES[name]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = torch.poisson(torch.full((batch, steps, neurons), 0.3))
    sizes, ways = SMALL if name == "laptop" else SIZES, []
    ours_of = lambda m: models.loss(m, x, x, hyper=HYPER)[0]
    for loss in ours_of, not_compiled(ours_of), lambda m: plain_loss(m, x, x, HYPER):
        model = models.LFADS(neurons, steps, **sizes)
        ways.append(train_step(loss, model, torch.optim.AdamW(model.parameters(), HYPER.lr)))
    (ours, our_cpu), (torchs, _), (plain, plain_cpu) = measure(ways, repeats)
    flop, theirs = gigaflops(sizes, batch, steps, neurons), dict(zip((2, 1), public)).get(threads)
    beside = f"; public {theirs:.3f} s, {theirs / ours:.1f} x" if theirs else ""
    print(f"{name:8} {threads} thread(s): {ours:.3f} s a batch ({our_cpu:.3f} s of processor), "
          f"not compiled {torchs:.3f}: {torchs / ours:.1f} x; plain {plain:.3f} ({plain_cpu:.3f}): "
          f"{plain / ours:.1f} x ({plain_cpu / our_cpu:.1f} x){beside}; {flop / ours:.0f} GFLOP/s "
          f"of {peak():.0f}", flush=True)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("shapes", nargs="*", default=list(SHAPES), help=", ".join(SHAPES))
    ask.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    ask.add_argument("--repeats", type=int, default=5)
    asked = ask.parse_args()
    core.keep_memory()
    lib = lfads.compiled()
    print(f"PyTorch {torch.__version__}; loops: {lib.way if lib else 'torch'}")
    for threads in asked.threads:
        for name in asked.shapes: compare(name, threads, asked.repeats)
