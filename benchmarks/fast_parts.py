"""What each faster part saves of a training step.

    python benchmarks/fast_parts.py [linear transformer ndt lfads lorenz] [--repeats 15]

Forward, backward and update of one network at a laptop's size ("lorenz": of the paper's), on one
thread, in turns. Printed: milliseconds of processor time as it is, and the times of the other ways
as multiples of it. "library dropout" takes `torch.nn.functional.dropout`; "plain" is
`NEUROCOMPANION_FAST=no`; "torch loops" are those of LFADS without a compiler; "other library" takes
the other one of PyTorch's two libraries for large products than `fast.linear` takes on this
processor, which is oneDNN on those of AMD with AVX-512 and the first library elsewhere.

A part stays if it saves 15 % at a laptop's size. On two AMD EPYCs with AVX2 (families 23 and 25),
with other work on the machine: dropout 1.2 (Transformer), compiled loops of LFADS 4.0 (laptop) and
2.0 (lorenz), those in PyTorch without them 1.7. Products by oneDNN, as a multiple of the step with
them: there 1.02 to 1.14 (worms, 64 units), 0.81 to 0.84 (NDT of laptop size) and 0.87 (NDT of the
paper's), and so not taken; on one with AVX-512 (family 26) 1.33 (Linear 64), 1.19 (Transformer 64)
and 1.14 (NDT), and so taken. What was left out: masks by a compiled loop 1.02 to 1.12; attention
with a gradient by hand 1.00 to 1.10; the worms' loss by hand 1.04 to 1.11, the Poisson loss 1.0 to
1.12. On another processor all of these together had made 1.09 (Linear 64), 1.21 (LSTM 64), 1.38
(Transformer 64), 1.21 (Linear 512) and 1.09 (Transformer 512), dropout included.
"""

import argparse
import os
import platform
import statistics
import time
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch
import torch.nn.functional as F

from neurocompanion import core, fast
from neurocompanion.autolfads import models as autolfads
from neurocompanion.fast import dropout, lfads, linear
from neurocompanion.sessions import models as sessions
from neurocompanion.worm_scaling import models as worms


def library_dropout(x, rate, generator=None, streams=None): return F.dropout(x, rate)


WAYS = {
    "as it is": lambda: patch.dict(os.environ),
    "plain": lambda: patch.dict(os.environ, NEUROCOMPANION_FAST="no"),
    "library dropout": lambda: patch.multiple(dropout, drop=library_dropout),
    "torch loops": lambda: patch.object(lfads, "compiled", lambda: None),
    "other library": lambda: patch.object(linear, "second",
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


def recurrent(batch, steps, neurons, **sizes):
    "A step of LFADS."
    model = autolfads.LFADS(neurons, steps, **sizes)
    x = torch.poisson(torch.full((batch, steps, neurons), 0.3))
    return model, lambda: autolfads.loss(model, x, x)[0]


STEPS = {
    "linear": (lambda: worm(worms.Linear), ("library dropout", "other library")),
    "transformer": (lambda: worm(worms.Transformer), ("library dropout", "other library")),
    "ndt": (ndt, ("library dropout", "other library")),
    "lfads": (lambda: recurrent(64, 50, 30, ic_encoder=32, ic=32, ci_encoder=32, controller=32,
                                inputs=10, generator=48, factors=30), ("plain", "torch loops")),
    "lorenz": (lambda: recurrent(128, 100, 60, ci_encoder=80, controller=80, inputs=4),
               ("plain", "torch loops")),
}


def compare(name, repeats):
    torch.manual_seed(0)
    make, ways = STEPS[name]
    model, loss = make()
    optimiser = torch.optim.AdamW(model.parameters())

    def step():
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()

    names = ["as it is", *ways]
    seen = {way: [] for way in names}
    for turn in range(repeats + 1):                          # the first round warms up
        for way in names if turn % 2 else names[::-1]:
            with WAYS[way](), patch.object(worms, "drop", dropout.drop), \
                    patch.object(sessions, "drop", dropout.drop):
                if way == "library dropout":
                    worms.drop = sessions.drop = library_dropout
                start = time.process_time()
                step()
                if turn: seen[way].append(time.process_time() - start)
    times = {way: statistics.median(t) for way, t in seen.items()}
    told = ", ".join(f"{way} {times[way] / times['as it is']:.2f}" for way in ways)
    print(f"{name:11} {1e3 * times['as it is']:.1f} ms; {told}", flush=True)


def processor():
    "What this machine says that it is."
    try: lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError: return platform.processor() or platform.machine()
    told = dict((k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines))
    return ", ".join(f"{k} {told[k]}" for k in ("model name", "cpu family", "model") if k in told)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("steps", nargs="*", default=list(STEPS), help=", ".join(STEPS))
    ask.add_argument("--repeats", type=int, default=15)
    asked = ask.parse_args()
    torch.set_num_threads(1)
    core.keep_memory()
    print(f"{processor()}; {torch.backends.cpu.get_cpu_capability()}")
    for name in asked.steps: compare(name, asked.repeats)
    print(fast.paths())
