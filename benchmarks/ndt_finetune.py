"""Fine-tuning eight sessions on one frozen body: together, one after the other, and written out.

    python benchmarks/ndt_finetune.py [--quick] [--device cuda]

The three take turns in one process, on the same threads:

- together: `fine_tune_many`, all eight sessions at once;
- one by one: `fine_tune`, our own, one session after the other;
- written out: the loop that one would write with PyTorch's own layers and optimiser, one session
  after the other, on a body whose parameters are frozen. It validates and keeps the best as well.

Seconds of an epoch of all eight; set-up is subtracted.
"""

import copy
import os
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
from turns import alone, finish, row

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


def written_out(session, bins, sizes, epochs, device):
    "The loop that one would write."
    torch.manual_seed(0)
    model = Written(session.train.shape[2], bins, **sizes).to(device)
    train, valid = session.train.to(device), session.valid.to(device)
    model.requires_grad_(False)
    own = [*model.encode.parameters(), *model.decode.parameters(), model.prefix]
    for p in own: p.requires_grad_(True)
    batches = -(-len(session.train) // 16)
    optimiser = torch.optim.AdamW(own, 1e-4, weight_decay=0.01)
    schedule = make_schedule(paper_schedule(), optimiser, epochs * batches)
    held, best, kept = hide(valid.shape[:2]).to(device), float("inf"), None
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(train)).split(16):
            x = train[rows.to(device)]
            optimiser.zero_grad()
            model.loss(x, hide(x.shape[:2]).to(device)).backward()
            nn.utils.clip_grad_norm_(own, 1.0)
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad(): loss = model.loss(valid, held).item()
        if loss < best: best, kept = loss, copy.deepcopy([p.detach() for p in own])
    return kept


def times(ways, epochs, repeats):
    "Seconds of an epoch, of every turn; set-up subtracted."
    found = [[] for _ in ways]
    for _ in range(repeats + 1):                              # the first round warms up
        for way, t in zip(ways, found):
            marks = [time.perf_counter()]
            for n in (1, 1 + epochs):
                way(n)
                finish()
                marks.append(time.perf_counter())
            t.append((marks[2] - 2 * marks[1] + marks[0]) / epochs)
    return [t[1:] for t in found]


def compare(name, device, repeats):
    bins, trials, units, sizes, epochs = WIDTHS[name]
    torch.manual_seed(0)
    pool = [made_up(i, units + units // 10 * i, trials, bins) for i in range(8)]
    body = NDT(bins, **sizes).to(device)
    ways = [lambda n: fine_tune_many(body, pool, epochs=n),
            lambda n: [fine_tune(body, s, epochs=n) for s in pool],
            lambda n: [written_out(s, bins, sizes, n, device) for s in pool]]
    together, single, plain = times(ways, epochs, repeats)
    how = dict(threads=torch.get_num_threads(), device=device)
    title = f"fine-tuning eight sessions, {name} sizes: an epoch"
    yield row("sessions", title, "s", together, plain, "written out, one by one", **how)
    yield row("sessions", title, "s", together, single, "`fine_tune`, one by one", **how)


def for_table(device="cpu", quick=False):
    for name in ("tiny",) if quick else WIDTHS:
        yield from compare(name, device, 1 if quick else 3)


if __name__ == "__main__": alone(for_table, __doc__)
