"""How much faster the worm GNN's cross-validation is as a population than one by one.

    python benchmarks/worm_gnn_population.py [--quick] [--device cuda]

Ways take turns; told is a network's share of the time, for 800 epochs, set-up subtracted. On the
processor one thread computes and its own seconds count, so that others' work on the machine does
not. Recordings are made up, of the length of the real ones.

"Written out" is the network as one would write it from the paper's equations, with PyTorch's own
layers: pairs are concatenated, messages are passed at every step. "`fit`" is our model, one at a
time. The population does the same arithmetic as `fit`, side by side: their ratio is what stacking
is worth. `look=100` infers static edges from 100 evenly spaced steps of a worm instead of all three
thousand, in the network written out as well. Accuracies on test folds are compared too.
"""

import copy
import os
import time
from functools import partial
from unittest.mock import patch

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from neurocompanion.worm_gnn import data
from neurocompanion.worm_gnn.models import GNN, MLP
from neurocompanion.worm_gnn.training import (cross_validation, cut, train_alone, train_states)
from turns import alone, finish, row

NODES, STEPS, HIDDEN = 15, 3100, 16


def made_up(name, seed):
    "A worm of random states, which its neurons follow."
    draw = np.random.default_rng(seed)
    y = np.repeat(np.arange(400) % 2, draw.integers(15, 40, 400))[:STEPS]
    trace = np.convolve(2.0 * y - 1, np.exp(-np.arange(30) / 6))[:STEPS, None]
    trace = trace * draw.standard_normal(NODES) + draw.standard_normal((STEPS, NODES))
    time_, names = np.arange(STEPS) / 3, tuple(data.SHARED_15)
    slope = data.derivative(trace, time_)
    return data.scaled(data.Worm(name, None, y, time_, names, ("forward", "reversal"), trace,
                                 slope, "made up"))


def block(inputs):
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
                         nn.BatchNorm1d(HIDDEN))


class WrittenMLP(nn.Module):
    "Equations (6) and (7) as they stand."

    def __init__(self):
        super().__init__()
        self.g, self.head = block(2 * NODES), nn.Linear(HIDDEN, 2)

    def forward(self, x, whole): return self.head(self.g(x.flatten(1)))


class WrittenGNN(nn.Module):
    "Equations (8) to (14) as they stand, with a residual message; one worm."

    def __init__(self):
        super().__init__()
        self.encode, self.pair, self.logits = block(2), block(2 * HIDDEN), nn.Linear(HIDDEN, 2)
        self.g, self.head = block(2 * NODES), nn.Linear(HIDDEN, 2)

    def forward(self, x, whole):                                        # t n f
        h = self.encode(whole.flatten(0, 1)).view(*whole.shape[:2], -1).mean(0)
        pairs = torch.cat([h[:, None].expand(-1, NODES, -1), h[None].expand(NODES, -1, -1)], -1)
        w = self.logits(self.pair(pairs.flatten(0, 1))).softmax(-1)[:, 1].view(NODES, NODES)
        x = x + torch.einsum("ij,tjf->tif", w, x) / NODES
        return self.head(self.g(x.flatten(1)))


def written_out(make, worms, member, cuts, epochs, look=None, device="cpu"):
    "The loop that everyone writes: Adam, a plateau, the best weights."
    torch.manual_seed(member.number)
    worm, fold = worms[member.worms[0]], cuts[member.worms[0]][member.fold].on(STEPS)
    x, y = (torch.as_tensor(v).to(device) for v in (worm.x, worm.y))
    train, valid = [(x[m], y[m]) for m in (fold.train, fold.validation)]
    model, best, kept = make().to(device), np.inf, None
    seen = x if look is None else x[torch.arange(look) * len(x) // look]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.25, patience=50)
    for _ in range(epochs):
        model.train()
        loss = F.cross_entropy(model(train[0], seen), train[1], ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.eval()
        with torch.no_grad():
            judged = F.cross_entropy(model(valid[0], seen), valid[1], ignore_index=-1).item()
        schedule.step(judged)
        if judged < best: best, kept = judged, copy.deepcopy(model.state_dict())
    return kept


def times(ways, epochs, repeats, clock):
    "Seconds per network and epoch of every turn; set-up subtracted."
    found, now = [[] for _ in ways], getattr(time, {"processor": "process_time"}.get(
        clock, "perf_counter"))
    for _ in range(repeats + 1):                        # the first round warms up
        for (way, models), t in zip(ways, found):
            marks = [now()]
            for n in (1, 1 + epochs):
                way(n)
                finish()
                marks.append(now())
            t.append((marks[2] - 2 * marks[1] + marks[0]) / epochs / models)
    return [t[1:] for t in found]


def compare(name, ours, written, worms, cuts, device, epochs, repeats, look=None, some=2):
    "One network: as a population, by `fit`, written out."
    members = cross_validation(len(worms), 1)
    ways = [(lambda n: train_states(ours, worms, members, cuts, epochs=n, device=device),
             len(members)),
            (lambda n: [train_alone(ours, worms, m, cuts, epochs=n) for m in members[:some]], some),
            (lambda n: [written_out(written, worms, m, cuts, n, look, device)
                        for m in members[:some]], some)]
    clock = "processor" if device == "cpu" else "wall"
    stacked, by_fit, plain = ([800 * t for t in v] for v in times(ways, epochs, repeats, clock))
    how = dict(clock=clock, device=device, threads=1 if device == "cpu" else None)
    title, aim = f"{name}, {len(members)} as one: a network of 800 epochs", ("ratio", 10)
    yield row("worm_gnn", title, "s", stacked, plain, "written out, one by one", **how,
              aim=("ratio", 20) if device != "cpu" else aim if look else ())
    yield row("worm_gnn", title, "s", stacked, by_fit, "`fit`, one by one", **how)


def accuracies(name, ours, worms, cuts, device, epochs, some=5):
    "Accuracy on test folds of some members, as a population and by `fit`."
    members = cross_validation(len(worms), 1)[::10][:some]
    together = train_states(ours, worms, members, cuts, epochs=epochs, device=device)
    told = [[], []]
    for i, m in enumerate(members):
        worm = worms[m.worms[0]]
        test = cuts[m.worms[0]][m.fold].on(STEPS).test
        lone = train_alone(ours, worms, m, cuts, epochs=epochs)
        for model, found in zip((together.model(i), lone), told):
            x = torch.as_tensor(worm.x)[None].to(next(model.parameters()).device)
            with torch.no_grad(): said = model.eval()(x)[0].argmax(-1).cpu()
            found.append(100 * float((said.numpy() == worm.y)[test].mean()))
    return row("worm_gnn", f"{name}: accuracy of a network, {epochs} epochs", "%", *told,
               "`fit`, one by one", higher=True, device=device)


def for_table(device="cpu", quick=False):
    torch.set_num_threads(1)
    worms = [made_up(f"made up {i}", i) for i in range(2 if quick else 5)]
    cuts, epochs, repeats = cut(worms), 2 if quick else 10, 1 if quick else 3
    mlp, thin = partial(MLP, NODES), partial(GNN, NODES, look=100)
    kinds = [("GNN, look=100", thin, WrittenGNN, epochs, 100)]
    if not quick: kinds += [("MLP", mlp, WrittenMLP, epochs, None),
                            ("GNN, edges of all steps", partial(GNN, NODES), WrittenGNN, 5, None)]
    with patch.dict(os.environ, NEUROCOMPANION_DEVICE=device):
        for name, ours, written, n, look in kinds:
            yield from compare(name, ours, written, worms, cuts, device, n, repeats, look)
        yield accuracies("GNN, look=100", thin, worms, cuts, device, 3 if quick else 100)


if __name__ == "__main__": alone(for_table, __doc__)
