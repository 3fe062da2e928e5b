"""Fine-tuning eight sessions on one frozen body: together, one after the other, and written out.

    python benchmarks/ndt_finetune.py [tiny small paper] [--threads 1 2] [--repeats 3]

The three take turns in one process, on the same threads:

- together: `fine_tune_many`, all eight sessions at once;
- one by one: `fine_tune`, our own, one session after the other;
- written out: the loop that one would write with PyTorch's own layers and optimiser, one session
  after the other, on a body whose parameters are frozen. It validates and keeps the best as well.

Medians of wall seconds, and of processor seconds (which other work on the machine disturbs less),
per epoch of all eight; set-up is subtracted.
"""

import argparse
import copy
import os
import statistics
import time

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch
from torch import nn

from ndt_step import Written
from neurocompanion.sessions.data import Session
from neurocompanion.sessions.models import NDT, hide
from neurocompanion.sessions.pretraining import paper_schedule
from neurocompanion.sessions.training import fine_tune, fine_tune_many
from neurocompanion.training.schedules import make_schedule

WIDTHS = {  # bins, trials, units of the first session (each has more), sizes, epochs
    "tiny": (50, 100, 30, dict(token=32, width=32, heads=2, layers=2, feedforward=64), 4),
    "small": (100, 100, 60, dict(token=64, width=64, heads=4, layers=3, feedforward=128), 3),
    "paper": (150, 20, 400, {}, 1),
}


def made_up(i, units, trials, bins):
    "A session of random counts."
    draw = torch.Generator().manual_seed(i)
    x = torch.poisson(torch.full((trials, bins, units), 0.2), generator=draw)
    parts = x.split([round(0.8 * trials), round(0.1 * trials), trials - round(0.9 * trials)])
    return Session(f"session {i}", *parts, 0.02, tuple(range(units)), {})


def written_out(session, bins, sizes, epochs):
    "The loop that one would write."
    torch.manual_seed(0)
    model = Written(session.train.shape[2], bins, **sizes)
    model.requires_grad_(False)
    own = [*model.encode.parameters(), *model.decode.parameters(), model.prefix]
    for p in own: p.requires_grad_(True)
    batches = -(-len(session.train) // 16)
    optimiser = torch.optim.AdamW(own, 1e-4, weight_decay=0.01)
    schedule = make_schedule(paper_schedule(), optimiser, epochs * batches)
    held, best, kept = hide(session.valid.shape[:2]), float("inf"), None
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(session.train)).split(16):
            x = session.train[rows]
            optimiser.zero_grad()
            model.loss(x, hide(x.shape[:2])).backward()
            nn.utils.clip_grad_norm_(own, 1.0)
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad(): loss = model.loss(session.valid, held).item()
        if loss < best: best, kept = loss, copy.deepcopy([p.detach() for p in own])
    return kept


def seconds(ways, epochs, repeats):
    "Medians of wall and processor seconds of an epoch; runs take turns, set-up subtracted."
    seen = [[] for _ in ways]
    for _ in range(repeats + 1):                              # the first round warms up
        for way, times in zip(ways, seen):
            marks = [(time.perf_counter(), time.process_time())]
            for n in (1, 1 + epochs):
                way(n)
                marks.append((time.perf_counter(), time.process_time()))
            times.append([(c - 2 * b + a) / epochs for a, b, c in zip(*marks)])
    return [[statistics.median(t) for t in zip(*times[1:])] for times in seen]


def compare(name, threads, repeats):
    bins, trials, units, sizes, epochs = WIDTHS[name]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    pool = [made_up(i, units + units // 10 * i, trials, bins) for i in range(8)]
    body = NDT(bins, **sizes)
    ways = [lambda n: fine_tune_many(body, pool, epochs=n),
            lambda n: [fine_tune(body, s, epochs=n) for s in pool],
            lambda n: [written_out(s, bins, sizes, n) for s in pool]]
    (t, cpu), (t_one, cpu_one), (t_plain, cpu_plain) = seconds(ways, epochs, repeats)
    print(f"{name:6} {threads} thread(s): an epoch of eight together {t:.2f} s ({cpu:.2f} s of "
          f"processor); one by one {t_one:.2f} s ({cpu_one:.2f}), {t_one / t:.2f} x "
          f"({cpu_one / cpu:.2f} x); written out {t_plain:.2f} s ({cpu_plain:.2f}), "
          f"{t_plain / t:.2f} x ({cpu_plain / cpu:.2f} x)", flush=True)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("widths", nargs="*", default=list(WIDTHS), help="tiny, small, paper")
    ask.add_argument("--threads", nargs="+", type=int, default=[2])
    ask.add_argument("--repeats", type=int, default=3)
    asked = ask.parse_args()
    for threads in asked.threads:
        for name in asked.widths: compare(name, threads, asked.repeats)
