"""How close training the worm models comes to what the machine can do.

    python benchmarks/worm_training.py

Every figure is a ratio taken in one run, in turns, on the same threads, so that it holds on any
machine. First the rate of a step of `fit` (all of it: batch, forward, loss, backward, update),
counted in the matrix products that its mathematics needs, against the rate of one product of two
2048 x 2048 float32 matrices. Then an epoch of 284 worms x 32 windows, which `fit` gathers from the
recordings, against bare tensor operations on windows that lie ready. Turns that other programs
disturb are slower than they should be: the best of each counts; on a busy machine use
`--threads 1`, which counts processor time instead of time on the clock. Targets: LSTM 512 at
least 90 %, Transformer 512 75 %, Transformer 64 40 %; the epoch at most 1.1.

`fit` lets the process keep the memory that a step frees (`core.keep_memory`). The bare operations
get the same, to be fair; `--plain` does without it on both sides.
"""
import argparse
import os
import time

os.environ["NEUROCOMPANION_QUIET"] = "1"

import numpy as np
import torch

from neurocompanion import core
from neurocompanion.training.fit import fit
from neurocompanion.training.schedules import make_optimiser
from neurocompanion.worm_scaling.data import Windows
from neurocompanion.worm_scaling.models import LSTM, Transformer, next_step_loss, training_flops


def simulated_halves(worms, seconds=540, seed=0):
    "Standardised-looking recordings: activity, mask and the length of the first half."
    rng = np.random.default_rng(seed)
    for _ in range(worms):
        mask = np.zeros(302, bool)
        mask[rng.choice(302, 60, replace=False)] = True
        walk = rng.standard_normal((seconds, 302)).astype("float32") * mask
        yield walk, mask


def seconds(f):
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    f()
    return clock() - start


def product():
    "One product of two large matrices, as a function to time; and its operations."
    a, b = torch.randn(2, 2048, 2048).unbind(0)
    return lambda: a @ b, 2 * 2048**3


def rate(name, model, target, rounds, batches):
    "Operations a second of `fit` relative to those of a large product."
    one, flops = product()
    data = Windows.from_arrays(simulated_halves(2 * batches), 32, batch=64)
    train = lambda: fit(model, next_step_loss, data, epochs=1, keep="last")
    train()
    products, steps = [], []
    begun = time.perf_counter()
    for turn in range(rounds):
        products += [seconds(one) for _ in range(4)]
        steps.append(seconds(train) / len(data))
        if turn and time.perf_counter() - begun > 8: break
    ratio = training_flops(model, 6400) / min(steps) / (flops / min(products))
    aim = f", at least {100 * target:.0f} %: {'met' if ratio >= target else 'NOT MET'}"
    print(f"{name}: {100 * ratio:5.1f} % of a product's rate, {1e3 * min(steps):.1f} ms a step, "
          f"product {flops / min(products) / 1e9:.0f} GFLOP/s{aim}", flush=True)


def bare(model, data):
    "An epoch on windows that lie ready: forward, backward and update, and not a line more."
    optimiser, order = make_optimiser(model.parameters()), torch.randperm(len(data[0]))
    model.train()
    for rows in order.split(64):
        optimiser.zero_grad(set_to_none=True)
        next_step_loss(model, *(x.index_select(0, rows) for x in data))[0].backward()
        optimiser.step()


def epoch(name, make, rounds, worms, limit=1.1):
    "An epoch by `fit`, from recordings, against the bare operations."
    lazy = Windows.from_arrays(simulated_halves(worms), 32, batch=64)
    ready = tuple(torch.cat(x) for x in zip(*lazy))
    ways = [lambda: fit(make(), next_step_loss, lazy, epochs=1, keep="last"),
            lambda: bare(make(), ready)]
    best, begun = [float("inf")] * 2, time.perf_counter()
    for turn in range(rounds):
        if turn > 1 and time.perf_counter() - begun > 12: break
        for i in (0, 1) if turn % 2 else (1, 0): best[i] = min(best[i], seconds(ways[i]))
    held = lazy.values.nbytes / 2**20, sum(x.nbytes for x in ready) / 2**20
    ratio = best[0] / best[1]
    print(f"{name}, {len(ready[0])} windows: an epoch of fit / bare = {ratio:.3f} (at most "
          f"{limit}), {best[0]:.1f} s; {held[0]:.0f} MiB of recordings instead of {held[1]:.0f} "
          f"MiB of windows; {'met' if ratio <= limit else 'NOT MET'}", flush=True)


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument("--threads", type=int, default=torch.get_num_threads())
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--plain", action="store_true", help="let freed memory go, as glibc does")
    given = ask.parse_args()
    if given.plain: core.keep_memory = lambda: False
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"{given.threads} threads; others keep {os.getloadavg()[0]:.1f} cores busy; "
          f"memory {'kept' if core.keep_memory() else 'not kept'}")
    rate("Transformer 64 ", Transformer(64), 0.40, 2 * given.rounds, 10)
    rate("LSTM 512       ", LSTM(512), 0.90, given.rounds, 3)
    rate("Transformer 512", Transformer(512), 0.75, given.rounds, 3)
    epoch("LSTM 64", lambda: LSTM(64), given.rounds, 284)
    epoch("Transformer 64", lambda: Transformer(64), given.rounds, 284)


if __name__ == "__main__": main()
