"""How close training the worm models comes to what the machine can do.

    python benchmarks/worm_training.py [--quick] [--device cuda]

First a step of `fit` (all of it: batch, forward, loss, backward, update), counted in the matrix
products that its mathematics needs, beside the rate of one large product. Then an epoch of 284
worms x 32 windows, which `fit` gathers from the recordings, beside bare operations on windows that
lie ready, and how much memory each takes.
"""

import os

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import numpy as np
import torch

from neurocompanion import core
from neurocompanion.training.fit import fit
from neurocompanion.training.schedules import make_optimiser
from neurocompanion.worm_scaling.data import Windows
from neurocompanion.worm_scaling.models import LSTM, Transformer, next_step_loss, training_flops
from turns import alone, by_clock, product, row, runs


def simulated_halves(worms, seconds=540, seed=0):
    "Standardised-looking recordings: activity, mask and the length of the first half."
    rng = np.random.default_rng(seed)
    for _ in range(worms):
        mask = np.zeros(302, bool)
        mask[rng.choice(302, 60, replace=False)] = True
        walk = rng.standard_normal((seconds, 302)).astype("float32") * mask
        yield walk, mask


def bare(model, data):
    "An epoch on windows that lie ready: forward, backward and update, and not a line more."
    optimiser, order = make_optimiser(model.parameters()), torch.randperm(len(data[0]))
    model.train()
    for rows in order.split(64):
        optimiser.zero_grad(set_to_none=True)
        next_step_loss(model, *(x.index_select(0, rows) for x in data))[0].backward()
        optimiser.step()


def named(model): return f"{type(model).__name__} {model.embed[0].out_features}"


def rate(make, aim, device, repeats, batches):
    "Operations a second of `fit` beside those of a large product."
    model = make().to(device)
    multiply, gigaflop = product(4096 if device != "cpu" else 2048, device)
    data = Windows.from_arrays(simulated_halves(2 * batches), 32, batch=64)
    train = lambda: fit(model, next_step_loss, data, epochs=1, keep="last")
    mine, large = by_clock(runs([train, multiply], repeats), "wall")
    ours = [len(data) * training_flops(model, 6400) / 1e9 / t for t in mine]
    best = [gigaflop / t for t in large]
    return row("worm_scaling", f"{named(model)}, a step of `fit`", "GFLOP/s", ours,
               higher=True, device=device, threads=torch.get_num_threads(),
               limit=(best, "a large product, GFLOP/s", [a / b for a, b in zip(ours, best)]),
               aim=("share", aim))


def epoch(make, worms, device, repeats):
    "An epoch by `fit`, from recordings, beside the bare operations."
    lazy = Windows.from_arrays(simulated_halves(worms), 32, batch=64)
    ready = tuple(torch.cat(x).to(device) for x in zip(*lazy))
    ways = [lambda: fit(make().to(device), next_step_loss, lazy, epochs=1, keep="last"),
            lambda: bare(make().to(device), ready)]
    mine, theirs = by_clock(runs(ways, repeats), "wall")
    name = f"{named(make())}, an epoch of {len(ready[0]):,} windows"
    yield row("worm_scaling", name, "s", mine, theirs, "bare operations on windows that lie ready",
              threads=torch.get_num_threads(), device=device, aim=("ratio", 0.9))
    yield row("worm_scaling", f"{worms} worms, 32 windows each, kept", "MiB",
              [lazy.values.nbytes / 2**20], [sum(x.nbytes for x in ready) / 2**20],
              "windows that lie ready", device=device)


def for_table(device="cpu", quick=False):
    torch.manual_seed(0)
    core.keep_memory()
    repeats = 1 if quick else 5
    kinds = [(lambda: Transformer(64), 0.40, 10), (lambda: LSTM(512), 0.90, 3),
             (lambda: Transformer(512), 0.75, 3)]
    for make, aim, batches in kinds[:1] if quick else kinds:
        yield rate(make, aim, device, repeats, batches)
    yield from epoch(lambda: LSTM(64), 20 if quick else 284, device, 1 if quick else 3)


if __name__ == "__main__": alone(for_table, __doc__)
