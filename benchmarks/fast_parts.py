"""What each faster part saves of a training step.

    python benchmarks/fast_parts.py [linear transformer ndt] [--turns 15]

Forward, backward and update of one network at a laptop's size, on one thread, in turns, in seconds
of processor time. "Library dropout" takes `torch.nn.functional.dropout`; "the other library" takes
the other one of PyTorch's two libraries for large products than `fast.linear` takes on this
processor, which is oneDNN on those of AMD with AVX-512 and the first library elsewhere. The loops
of LFADS are in `lfads_step.py`.

A part stays if it saves 15 % at a laptop's size. On two AMD EPYCs with AVX2 (families 23 and 25),
with other work on the machine: dropout 1.2 (Transformer). Products by oneDNN, as a multiple of the
step with them: there 1.02 to 1.14 (worms, 64 units), 0.81 to 0.84 (NDT of laptop size) and 0.87
(NDT of the paper's), and so not taken; on one with AVX-512 (family 26) 1.33 (Linear 64), 1.19
(Transformer 64) and 1.14 (NDT), and so taken. What was left out: masks by a compiled loop 1.02 to
1.12; attention with a gradient by hand 1.00 to 1.10; the worms' loss by hand 1.04 to 1.11, the
Poisson loss 1.0 to 1.12. On another processor all of these together had made 1.09 (Linear 64), 1.21
(LSTM 64), 1.38 (Transformer 64), 1.21 (Linear 512) and 1.09 (Transformer 512), dropout included.
"""

import argparse
import os
from unittest.mock import patch

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch
import torch.nn.functional as F

from neurocompanion import core
from neurocompanion.fast import dropout, linear
from neurocompanion.sessions import models as sessions
from neurocompanion.worm_scaling import models as worms
from turns import by_clock, row, runs, tell


def library_dropout(x, rate, generator=None, streams=None): return F.dropout(x, rate)


WAYS = {
    "as it is": lambda: patch.dict(os.environ),
    "library dropout": lambda: patch.multiple(dropout, drop=library_dropout),
    "the other library": lambda: patch.object(linear, "second",
                                              lambda usual=linear.second(): not usual),
}


def worm(kind):
    "A step of a worm model with 64 hidden units."
    model, x = kind(64), torch.randn(64, 101, 302)
    mask = (torch.rand(64, 302) < 0.2).float()
    return model, lambda: worms.next_step_loss(model, x, mask)[0]


def ndt():
    "A step of the neural data transformer."
    model = sessions.NDT(100, token=64, width=64, heads=4, layers=3, feedforward=128)
    model.add_session("one", 100)
    x, mask = torch.poisson(torch.full((16, 100, 100), 0.1)), sessions.hide((16, 100))
    return model, lambda: sessions.poisson_nll(
        sessions.fill_in(model, [("one", x, mask)])[0], x[mask])


STEPS = {"linear": ("Linear 64", lambda: worm(worms.Linear)),
         "transformer": ("Transformer 64", lambda: worm(worms.Transformer)),
         "ndt": ("NDT of laptop size", ndt)}


def compare(name, turns):
    torch.manual_seed(0)
    title, make = STEPS[name]
    model, loss = make()
    optimiser = torch.optim.AdamW(model.parameters())

    def step(way):
        with WAYS[way](), patch.object(worms, "drop", dropout.drop), \
                patch.object(sessions, "drop", dropout.drop):
            if way == "library dropout":
                worms.drop = sessions.drop = library_dropout
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()

    seen = by_clock(runs([lambda way=way: step(way) for way in WAYS], turns), "processor")
    ours, *others = [[1e3 * t for t in times] for times in seen]
    for way, times in zip([*WAYS][1:], others):
        yield row("fast", f"a training step, {title}", "ms", ours, times, way, threads=1,
                  clock="processor")


def for_table(device="cpu", quick=False, steps=STEPS, turns=None):
    torch.set_num_threads(1)
    core.keep_memory()
    for name in steps: yield from compare(name, turns or (3 if quick else 15))


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("steps", nargs="*", default=list(STEPS), help=", ".join(STEPS))
    ask.add_argument("--turns", type=int, default=15)
    asked = ask.parse_args()
    for r in for_table(steps=asked.steps, turns=asked.turns): print(tell(r), flush=True)
