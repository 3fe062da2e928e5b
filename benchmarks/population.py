"""How much faster a population is than training its members one by one.

Prints ratios of medians over alternating runs, in one go:  python benchmarks/population.py
Everything runs on one thread and is timed in seconds of processor time, so that other work on the
machine does not decide the result.
"""

import os
import statistics
import time

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from neurocompanion import core
from neurocompanion.training.fit import fit
from neurocompanion.training.population import fit_population

MEMBERS = 50


def perceptron():
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                         nn.Linear(16, 7))


def cross_entropy(model, x, y): return F.cross_entropy(model(x), y)


def plain(data, seed, epochs, batch, **settings):
    "The loop that everyone writes."
    torch.manual_seed(seed)
    model, order = perceptron(), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, **settings)
    for _ in range(epochs):
        shuffled = torch.randperm(len(data[0]), generator=order)
        for i in range(0, len(shuffled), batch):
            x, y = (v[shuffled[i:i + batch]] for v in data)
            loss = cross_entropy(model, x, y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model


def by_fit(data, seed, epochs, batch):
    "`fit`, one model after the other."
    core.set_seed(seed)
    model = perceptron()
    fit(model, cross_entropy, data, epochs=epochs, batch=batch, seed=seed)
    return model


def seconds(*ways, repeats=4):
    "Medians of processor time over runs that take turns."
    times = [[] for _ in ways]
    for _ in range(repeats + 1):                        # the first round warms up
        for way, t in zip(ways, times):
            start = time.process_time()
            way()
            t.append(time.process_time() - start)
    return [statistics.median(t[1:]) for t in times]


def perceptrons(batch, n=320, steps=100, some=5):
    "A population of 50 against `some` members one by one, scaled up to 50."
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(n, 30, generator=draw), torch.randint(0, 7, (n,), generator=draw)
    epochs = max(1, steps * batch // n)
    ways = [
        lambda: fit_population(perceptron, cross_entropy, data, seeds=MEMBERS, epochs=epochs,
                               batch=batch),
        lambda: [plain(data, s, epochs, batch) for s in range(some)],
        lambda: [plain(data, s, epochs, batch, fused=True) for s in range(some)],
        lambda: [by_fit(data, s, epochs, batch) for s in range(some)]]
    stacked, *single = seconds(*ways)
    ratios = [t * MEMBERS / some / stacked for t in single]
    pop = fit_population(perceptron, cross_entropy, data, seeds=4, epochs=2, batch=batch)
    apart = max((a - b).abs().max().item() for a, b in zip(
        pop.model(3).parameters(), plain(data, 3, 2, batch).parameters()))
    print(f"{MEMBERS} perceptrons 30-16-16-7, batch {batch:3d}: {ratios[0]:5.1f} x one by one, "
          f"{ratios[1]:5.1f} x with the fused optimiser, {ratios[2]:5.1f} x `fit`; "
          f"weights differ by {apart:.0e} after two epochs")
    return ratios[0]


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


def recurrent(members, hidden, batch=16, time_steps=50, inputs=30, repeats=3):
    "Forward and backward: a stacked loop against `nn.LSTM` one by one."
    loops = [Loop(inputs, hidden) for _ in range(members)]
    fused = [nn.LSTM(inputs, hidden, batch_first=True) for _ in range(members)]
    params, _ = stack_module_state(loops)
    x = torch.randn(members, batch, time_steps, inputs)
    one = lambda p, x: functional_call(loops[0], p, (x,)).square().mean()

    def stacked():
        torch.autograd.grad(vmap(one)(params, x).sum(), list(params.values()))

    def single():
        for model, v in zip(fused, x):
            torch.autograd.grad(model(v)[0].square().mean(), list(model.parameters()))

    together, apart = seconds(stacked, single, repeats=repeats)
    print(f"{members:3d} LSTMs of {hidden:3d} units, {time_steps} steps: {apart / together:5.2f} x "
          "nn.LSTM one by one")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}, one thread")
    main = [perceptrons(batch) for batch in (32, 64, 320)][0]
    for members, hidden in [(50, 16), (10, 64), (10, 128)]: recurrent(members, hidden)
    print(f"population / one by one: {main:.1f} (at least 8)")
