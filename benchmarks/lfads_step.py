"""Seconds a training step of LFADS takes, beside the same network with plain loops.

    python benchmarks/lfads_step.py [laptop lorenz chaotic maze] [--threads 1 2] [--repeats 5]
    python benchmarks/lfads_step.py [shapes] --device cuda [--members 1 20]

All run in turn, in the same process: forward, backward, clipping and AdamW on one batch, with
dropout 0.3 and coordinated dropout 0.5, in networks of the paper's sizes. "Plain" is written with
PyTorch's own layers: it walks through time step by step, autograd walks back, dropout is
`nn.functional.dropout`, the loss PyTorch's own. It follows the layout of a public implementation,
whose times at the same shapes, on two quiet cores, are printed beside. Ours runs with compiled
loops, where there is a compiler, and without. "laptop" is a network of the laptop sweeps' size.

Medians over alternating runs: seconds of the processor on one thread, which other work on the
machine disturbs less, and of the clock on more. GFLOP/s count products only, beside what one large
product reaches here.

With `--device`, ways to train on it: ours as a stack of one and of many, recorded as a CUDA graph
and not; plain PyTorch; and, as a bound, PyTorch's own recurrent layers (cuDNN's on a GPU) in a
network of the same sizes, whose generator and controller run freely instead of in turn. It runs on
the CPU too (`--device cpu`), where nothing is recorded. "x plain": how much faster a member trains.
"""

import argparse
import math
import os
from functools import partial

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch
import torch.nn.functional as F
from torch import nn

from neurocompanion import core
from neurocompanion.autolfads import cells, models
from neurocompanion.autolfads.stacked import Stack, adam_numbers, numbers
from neurocompanion.fast import lfads
from neurocompanion.fast.graph import tensor_cores
from turns import by_clock, product, row, runs, tell

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


def compare(name, threads, repeats):
    "Ours with compiled loops, beside plain PyTorch and beside its own loops in PyTorch."
    batch, steps, neurons, *public = SHAPES[name]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = torch.poisson(torch.full((batch, steps, neurons), 0.3))
    sizes, ways = SMALL if name == "laptop" else SIZES, []
    ours_of = lambda m: models.loss(m, x, x, hyper=HYPER)[0]
    for loss in ours_of, not_compiled(ours_of), lambda m: plain_loss(m, x, x, HYPER):
        model = models.LFADS(neurons, steps, **sizes)
        ways.append(train_step(loss, model, torch.optim.AdamW(model.parameters(), HYPER.lr)))
    multiply, gigaflop = product()
    clock = "processor" if threads == 1 else "wall"
    ours, torchs, plain, large = by_clock(runs([*ways, multiply], repeats), clock)
    theirs, flop = dict(zip((2, 1), public)).get(threads), gigaflops(sizes, batch, steps, neurons)
    best = [gigaflop / t for t in large]
    how = dict(threads=threads, clock=clock)
    title = f"LFADS, a training step, {name}"
    yield row("autolfads", title, "s", ours, plain, "plain PyTorch, step by step", **how,
              peer=(theirs, "lfads-torch", "two quiet cores") if theirs else (),
              limit=(best, "a large product, GFLOP/s", [flop / t / b for t, b in zip(ours, best)]))
    yield row("autolfads", title, "s", ours, torchs, "our loops, not compiled", **how)


# ---- on a device
class Layers(nn.Module):
    "Layers of PyTorch of an LFADS' sizes: what its steps in time would cost if they were fused."

    def __init__(self, neurons, s):
        super().__init__()
        both = lambda k: nn.GRU(neurons, k, batch_first=True, bidirectional=True)
        one = lambda reads, k: nn.GRU(reads, k, batch_first=True)
        self.ic, self.ci = both(s["ic_encoder"]), both(s["ci_encoder"])
        self.to_ic, self.to_g = nn.Linear(2 * s["ic_encoder"], 2 * s["ic"]), nn.Linear(
            s["ic"], s["generator"])
        self.controller = one(2 * s["ci_encoder"] + s["factors"], s["controller"])
        self.to_u, self.generator = nn.Linear(s["controller"], 2 * s["inputs"]), one(
            s["inputs"], s["generator"])
        self.factors, self.readout = nn.Linear(s["generator"], s["factors"]), nn.Linear(
            s["factors"], neurons)

    def forward(self, x, y):
        drop = lambda a: F.dropout(a, 0.3)
        x = drop(x)
        mean, logvar = self.to_ic(drop(self.ic(x)[1].transpose(0, 1).flatten(1))).chunk(2, 1)
        g0 = self.to_g(mean + (logvar / 2).exp() * torch.randn_like(mean))
        ci = drop(self.ci(x)[0])
        f = ci.new_zeros(*ci.shape[:2], self.factors.out_features)
        u, logvar = self.to_u(self.controller(torch.cat([ci, f], 2))[0]).chunk(2, 2)
        u = u + (logvar / 2).exp() * torch.randn_like(u)
        g = self.generator(u, g0[None])[0]
        log_rates = self.readout(self.factors(drop(g)))
        kl = (mean.square() + logvar.square().mean() + u.square().mean()).mean()
        return 1e4 * F.poisson_nll_loss(log_rates, y) + kl


def counts(name, device):
    batch, steps, neurons, *_ = SHAPES[name]
    torch.manual_seed(0)
    return torch.poisson(torch.full((batch, steps, neurons), 0.3)).to(device)


def stack_step(name, members, device, recorded=True):
    "A step of so many members as the training makes it, from their random numbers on."
    x, sizes = counts(name, device), SMALL if name == "laptop" else SIZES
    model = models.LFADS(x.shape[2], x.shape[1], **sizes).to(device)
    stack = Stack(model, members, (x, x, None), frozenset(), decoupled=True)
    for own in stack.weights: own.copy_(torch.cat([p.detach().flatten() for p in
                                                   model.parameters()]))
    if not recorded: stack.step.warm = math.inf
    streams, at = [torch.Generator().manual_seed(i) for i in range(members)], [0]

    def step():
        at[0] += 1
        adam = adam_numbers(at[0], HYPER.lr, 0.01, True)
        trials = torch.stack([torch.randperm(len(x), generator=g) for g in streams])
        return stack.train(trials, streams, [numbers(HYPER, 1.0, adam)] * members)
    return step


def ways_on(name, device, members):
    "Name and step of every way, and how many members it trains."
    x, sizes = counts(name, device), SMALL if name == "laptop" else SIZES
    plain = models.LFADS(x.shape[2], x.shape[1], **sizes).to(device)
    layers = Layers(x.shape[2], sizes).to(device)
    adam = lambda m: torch.optim.AdamW(m.parameters(), HYPER.lr, fused=True)
    cuda = torch.device(device).type == "cuda"
    return [("plain", 1, train_step(lambda m: plain_loss(m, x, x, HYPER), plain, adam(plain))),
            ("layers", 1, train_step(lambda m: m(x, x), layers, adam(layers))),
            *[(f"stack{' recorded' * recorded}", n, stack_step(name, n, device, recorded))
              for n in members for recorded in ((False, True) if cuda else (False,))]]


def on(device, shapes, members, repeats, steps=4):
    "A member's share of a step, every way, beside plain PyTorch and beside fused layers."
    def several(step):
        for _ in range(steps): step()

    for name in shapes:
        ways = ways_on(name, device, members)
        with tensor_cores(device):
            for _, _, step in ways: [step() for _ in range(3)]         # recorded by now
            seen = by_clock(runs([partial(several, step) for *_, step in ways], repeats), "wall")
        each = [[t / steps / n for t in times] for (_, n, _), times in zip(ways, seen)]
        for (way, n, _), mine in zip(ways[1:], each[1:]):
            aim = {"aim": ("ratio", 5)} if way == "stack recorded" and n > 1 else {}
            title = f"LFADS, a training step, {name}: {way}" + f" of {n}, a member" * (n > 1)
            yield row("autolfads", title, "s", mine, each[0], "plain PyTorch, step by step",
                      device=device, limit=(each[1], "layers of its sizes, fused in time, s", [
                          b / a for a, b in zip(mine, each[1])]), **aim)


def for_table(device="cpu", quick=False, shapes=None, threads=(1, 2), repeats=5, members=(1, 20)):
    core.keep_memory()
    if quick: shapes, threads, repeats, members = ("laptop",), (1,), 2, (1, 2)
    if device != "cpu": return (yield from on(device, shapes or ("lorenz",), members, repeats))
    for n in threads:
        for name in shapes or SHAPES: yield from compare(name, n, repeats)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("shapes", nargs="*", help=", ".join(SHAPES))
    ask.add_argument("--quick", action="store_true", help="small sizes, few turns")
    ask.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    ask.add_argument("--repeats", type=int, default=5)
    ask.add_argument("--device", default="cpu", help="cuda: ways to train on it")
    ask.add_argument("--members", nargs="+", type=int, default=[1, 20], help="of a stack")
    for r in for_table(**vars(ask.parse_args())): print(tell(r), flush=True)
