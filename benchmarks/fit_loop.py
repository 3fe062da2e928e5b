"""How much of a training run is spent outside forward, backward and optimiser.

    python benchmarks/fit_loop.py

Trains an LSTM as the worm-scaling paper does, on batches of 64 windows of 101 steps of 302 neurons
and a mask of the labelled ones: what is forecast is the window itself, one step later. Beside it
stands the same with inputs, targets and masks as three tensors of full size, which have to be
gathered for every batch. Two answers in one run: the
share of `fit`'s time that is not spent inside forward, backward and the optimiser's step, by
clocks around these three; and `fit` against the bare tensor operations, in turns, as a ratio of
medians. The share must stay at or below 5 % for 64 hidden units. A tiny network is shown beside
it, where a step costs a fraction of a millisecond.
"""
import argparse
import os
import statistics
import time
from contextlib import contextmanager

import torch
from torch import nn

from neurocompanion.training import metrics
from neurocompanion.training.fit import fit
from neurocompanion.training.schedules import make_optimiser


class LSTM(nn.Module):
    "The forecaster of the worm-scaling paper: embed, remember, read out."

    def __init__(self, neurons, hidden):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(neurons, hidden), nn.ReLU(), nn.LayerNorm(hidden))
        self.memory = nn.LSTM(hidden, hidden, batch_first=True)
        self.read = nn.Linear(hidden, neurons)

    def forward(self, x): return self.read(self.memory(self.embed(x))[0])


def one_step_ahead(model, windows, mask):
    "The loss of the worm-scaling paper, and the number of entries it is the mean of."
    return metrics.masked_mse(model(windows[:, :-1]), windows[:, 1:], mask, weight=True)


def masked_mse(model, x, y, mask):
    "Mean over the labelled entries, and their number."
    n = mask.sum()
    return ((model(x) - y).square() * mask).sum() / n, n


def bare(model, loss, data, epochs, batch):
    "Forward, backward and update, and not a line more."
    optimiser = make_optimiser(model.parameters())
    for _ in range(epochs):
        order = torch.randperm(len(data[0]))
        for i in range(0, len(order), batch):
            rows = order[i:i + batch]
            optimiser.zero_grad(set_to_none=True)
            loss(model, *(x.index_select(0, rows) for x in data))[0].backward()
            optimiser.step()


class Clock:
    "Adds up the time spent in the functions it wraps."

    def __init__(self): self.seconds = 0.0

    def __call__(self, f):
        def timed(*args, **kwargs):
            start = time.perf_counter()
            try: return f(*args, **kwargs)
            finally: self.seconds += time.perf_counter() - start
        return timed


@contextmanager
def clocked_backward(clock):
    "Every `backward` inside is timed."
    plain = torch.Tensor.backward
    torch.Tensor.backward = clock(plain)
    try: yield
    finally: torch.Tensor.backward = plain


def share_outside(model, loss, data, epochs, batch):
    "The share of one call of `fit` that is not forward, backward or update."
    clock = Clock()

    def optimiser(params):
        made = make_optimiser(params)
        made.step = clock(made.step)
        return made

    start = time.perf_counter()
    with clocked_backward(clock):
        fit(model, clock(loss), data, epochs=epochs, batch=batch, optimiser=optimiser)
    return 1 - clock.seconds / (time.perf_counter() - start)


def case(name, make, data, loss, epochs, batch, turns):
    "Time all three in turn; print shares and ratios."
    def timed(train):
        torch.manual_seed(0)
        model, start = make(), time.perf_counter()
        given = train(model, loss, data, epochs=epochs, batch=batch)
        return given if isinstance(given, float) else time.perf_counter() - start

    ways, found = [bare, fit, share_outside], []
    for turn in range(turns + 1):  # the first turn warms up
        order = ways[turn % 3:] + ways[:turn % 3]
        results = {way: timed(way) for way in order}
        if turn: found.append([results[way] for way in ways])
    plain, whole, share = (statistics.median(column) for column in zip(*found))
    steps = epochs * -(-len(data[0]) // batch)
    print(f"{name}: {100 * share:.1f} % outside forward, backward and optimiser; "
          f"fit / bare = {whole / plain:.3f}; {1e3 * plain / steps:.2f} ms a bare step", flush=True)
    return share


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument("--threads", type=int, default=torch.get_num_threads())
    ask.add_argument("--turns", type=int, default=7)
    given = ask.parse_args()
    os.environ["NEUROCOMPANION_QUIET"] = "1"
    torch.set_num_threads(given.threads)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(512, 101, 302, generator=draw)
    mask = torch.rand(512, 302, generator=draw) < 0.3
    full = mask[:, None].expand(-1, 100, -1).contiguous()
    apart = (x[:, :-1].contiguous(), x[:, 1:].contiguous(), full)
    few = (torch.randn(512, 30, generator=draw), torch.randn(512, 7, generator=draw),
           torch.ones(512, 7, dtype=torch.bool))
    mlp = lambda: nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                                nn.Linear(16, 7))
    lstm = lambda: LSTM(302, 64)
    share = case("LSTM, 64 hidden", lstm, (x, mask), one_step_ahead, 2, 64, given.turns)
    case("the same, inputs and targets apart", lstm, apart, masked_mse, 2, 64, given.turns)
    case("MLP 30-16-16-7", mlp, few, masked_mse, 30, 64, given.turns)
    print("within 5 %" if share <= 0.05 else "MORE THAN 5 %")


if __name__ == "__main__": main()
