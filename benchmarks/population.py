"""How much faster a population is than training its members one by one.

    python benchmarks/population.py [--quick] [--device cuda]

Fifty perceptrons as one stack beside the loop that one writes, with PyTorch's optimiser and with
its fused one, and beside `fit`, one model after the other; a few members stand for all of the
latter. Then forward and backward of a stack of LSTMs written in plain operations beside `nn.LSTM`
one by one, which is why LFADS and the worm models are not stacked that way. On the processor one
thread computes and its own seconds count, so that others' work on the machine does not.
"""

import os
from functools import partial

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from neurocompanion import core
from neurocompanion.training.fit import fit
from neurocompanion.training.population import fit_population
from turns import alone, by_clock, row, runs


def perceptron():
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                         nn.Linear(16, 7))


def cross_entropy(model, x, y): return F.cross_entropy(model(x), y)


def plain(data, seed, epochs, batch, **settings):
    "The loop that everyone writes."
    torch.manual_seed(seed)
    model, order = perceptron().to(data[0].device), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, **settings)
    for _ in range(epochs):
        shuffled = torch.randperm(len(data[0]), generator=order).to(data[0].device)
        for i in range(0, len(shuffled), batch):
            x, y = (v[shuffled[i:i + batch]] for v in data)
            loss = cross_entropy(model, x, y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def by_fit(data, seed, epochs, batch):
    "`fit`, one model after the other."
    core.set_seed(seed)
    fit(perceptron().to(data[0].device), cross_entropy, data, epochs=epochs, batch=batch, seed=seed)


def perceptrons(batch, members, some, device, repeats, n=320, steps=100):
    "A population beside a few of its members one by one, a member's share of the time."
    draw = torch.Generator().manual_seed(0)
    data = (torch.randn(n, 30, generator=draw).to(device),
            torch.randint(0, 7, (n,), generator=draw).to(device))
    epochs = max(1, steps * batch // n)
    singles = {"the usual loop": plain, "the usual loop, fused optimiser": partial(
        plain, fused=True), "`fit`, one by one": by_fit}
    ways = [lambda: fit_population(perceptron, cross_entropy, data, seeds=members, epochs=epochs,
                                   batch=batch, device=device),
            *(lambda f=f: [f(data, s, epochs, batch) for s in range(some)]
              for f in singles.values())]
    clock = "processor" if device == "cpu" else "wall"
    together, *apart = by_clock(runs(ways, repeats), clock)
    ms = lambda times, k: [1e3 * t / k for t in times]
    for name, times in zip(singles, apart):
        aim = {"aim": ("ratio", 20 if device != "cpu" else 8)} if name == "the usual loop" else {}
        yield row("training", f"{members} perceptrons as one, batch {batch}: a member",
                  "ms", ms(together, members), ms(times, some), name, clock=clock,
                  threads=1 if device == "cpu" else None, device=device, **aim)


class Loop(nn.Module):
    "An LSTM of plain operations, which can be stacked."

    def __init__(self, inputs, hidden):
        super().__init__()
        self.x, self.h = nn.Linear(inputs, 4 * hidden), nn.Linear(hidden, 4 * hidden, bias=False)

    def forward(self, x):                               # b t n
        out, h = [], x.new_zeros(len(x), self.h.in_features)
        c = h
        for gates in self.x(x).unbind(1):
            i, f, g, o = (gates + self.h(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return torch.stack(out, 1)


def recurrent(members, hidden, device, repeats, batch=16, steps=50, inputs=30):
    "Forward and backward: a stacked loop beside `nn.LSTM` one by one."
    loops = [Loop(inputs, hidden).to(device) for _ in range(members)]
    fused = [nn.LSTM(inputs, hidden, batch_first=True).to(device) for _ in range(members)]
    params, _ = stack_module_state(loops)
    x = torch.randn(members, batch, steps, inputs, device=device)
    one = lambda p, x: functional_call(loops[0], p, (x,)).square().mean()

    def stacked():
        torch.autograd.grad(vmap(one)(params, x).sum(), list(params.values()))

    def single():
        for model, v in zip(fused, x):
            torch.autograd.grad(model(v)[0].square().mean(), list(model.parameters()))

    clock = "processor" if device == "cpu" else "wall"
    together, apart = by_clock(runs([stacked, single], repeats), clock)
    return row("training", f"{members} LSTMs of {hidden} units in a stack, {steps} steps", "s",
               together, apart, "nn.LSTM one by one", clock=clock, device=device,
               threads=1 if device == "cpu" else None)


def for_table(device="cpu", quick=False):
    torch.set_num_threads(1)
    core.keep_memory()
    members, some, repeats = (8, 2, 2) if quick else (50, 5, 4)
    for batch in (32,) if quick else (32, 320):
        yield from perceptrons(batch, members, some, device, repeats)
    for many, hidden in [(4, 16)] if quick else [(50, 16), (10, 128)]:
        yield recurrent(many, hidden, device, repeats)


if __name__ == "__main__": alone(for_table, __doc__)
