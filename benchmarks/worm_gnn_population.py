"""How much faster the worm GNN's cross-validation is as a population than one by one.

Prints ratios of medians over alternating runs:  python benchmarks/worm_gnn_population.py
Everything runs on one thread and is timed in seconds of processor time, so that other work on the
machine does not decide the result. Recordings are made up, of the length of the real ones.

"Written out" is the network as one would write it from the paper's equations, with PyTorch's own
layers: pairs are concatenated, messages are passed at every step. "`fit`" is our model, one at a
time. The population does the same arithmetic as `fit`, side by side: their ratio is what stacking
is worth. `look=100` infers static edges from 100 evenly spaced steps of a worm instead of all three
thousand; that ratio holds for networks written out in the same way, and the last line says what
stacking, algebra and the thinned look give together. Accuracies are compared as well.
"""

import copy
import os
import statistics
import time

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from neurocompanion.worm_gnn import data
from neurocompanion.worm_gnn.models import GNN, MLP
from neurocompanion.worm_gnn.training import (cross_validation, cut, train_alone, train_states)

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


def written_out(make, worms, member, cuts, epochs, look=None):
    "The loop that everyone writes: Adam, a plateau, the best weights."
    torch.manual_seed(member.number)
    worm, fold = worms[member.worms[0]], cuts[member.worms[0]][member.fold].on(STEPS)
    x, y = torch.as_tensor(worm.x), torch.as_tensor(worm.y)
    train, valid = [(x[m], y[m]) for m in (fold.train, fold.validation)]
    model, best, kept = make(), np.inf, None
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


def seconds(ways, epochs, repeats=3):
    "Medians of processor time per model and epoch, over runs that take turns; set-up subtracted."
    times = [[] for _ in ways]
    for _ in range(repeats + 1):                        # the first round warms up
        for (way, models), t in zip(ways, times):
            marks = [time.process_time()]
            for n in (1, 1 + epochs):
                way(n)
                marks.append(time.process_time())
            t.append((marks[2] - 2 * marks[1] + marks[0]) / epochs / models)
    return [statistics.median(t[1:]) for t in times]


def compare(name, ours, written, worms, cuts, epochs=10, alone=2, look=None):
    "One network: written out, by `fit`, as a population of 50."
    members = cross_validation(5, 1)
    ways = [(lambda n: train_states(ours, worms, members, cuts, epochs=n), len(members)),
            (lambda n: [train_alone(ours, worms, m, cuts, epochs=n) for m in members[:alone]],
             alone),
            (lambda n: [written_out(written, worms, m, cuts, n, look) for m in members[:alone]],
             alone)]
    stacked, by_fit, plain = seconds(ways, epochs)
    print(f"{name:24}: population {stacked * 800:5.2f} s a model of 800 epochs; "
          f"{by_fit / stacked:5.1f} x `fit`, {plain / stacked:5.1f} x written out", flush=True)
    return stacked, plain


def accuracies(ours, worms, cuts, epochs=100, alone=5):
    "Accuracy on test folds of some members, as a population and by `fit`."
    members = cross_validation(5, 1)[::10][:alone]
    together = train_states(ours, worms, members, cuts, epochs=epochs)
    told = [[], []]
    for i, m in enumerate(members):
        worm = worms[m.worms[0]]
        test = cuts[m.worms[0]][m.fold].on(STEPS).test
        for model, found in zip((together.model(i), train_alone(ours, worms, m, cuts,
                                                                epochs=epochs)), told):
            with torch.no_grad(): said = model.eval()(torch.as_tensor(worm.x)[None])[0].argmax(-1)
            found.append((said.numpy() == worm.y)[test].mean())
    return np.mean(told, axis=1)


def full_table(mlp, gnn):
    "Worm-models of all 31 training sets and ten folds, in minutes on one core."
    trained = sum(len(m.worms) for m in cross_validation(5))
    return trained * 800 * (2 * mlp + gnn) / 60         # MLP and connectome cost the same


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}, one thread")
    worms = [made_up(f"made up {i}", i) for i in range(5)]
    cuts = cut(worms)
    thin = lambda: GNN(NODES, look=100)
    mlp, _ = compare("MLP", lambda: MLP(NODES), WrittenMLP, worms, cuts)
    _, whole = compare("GNN, edges of all steps", lambda: GNN(NODES), WrittenGNN, worms, cuts, 5)
    gnn, _ = compare("GNN, look=100", thin, WrittenGNN, worms, cuts, look=100)
    for name, make in (("MLP", lambda: MLP(NODES)), ("GNN, look=100", thin)):
        together, alone = accuracies(make, worms, cuts)
        print(f"{name:24}: accuracy {100 * together:.2f} % as a population, "
              f"{100 * alone:.2f} % by `fit`")
    print(f"the full table of two states (MLP, GNN on the connectome, GNN; 310 networks each): "
          f"about {full_table(mlp, gnn):.0f} min on one core")
    print(f"population with look=100 / one by one, written out, edges of all steps: "
          f"{whole / gnn:.1f} (at least 10)")
