"""How time and memory grow with worms, sessions, members, voxels, files and pages.

    python benchmarks/growth.py [worms sessions ...] [--passes 4]

Each size runs in a process of its own, on one thread: processor seconds of the job, and by how much
the process grows at its peak, data included. A pass goes through all sizes, which span a factor of
sixteen (with --quick, eight); a straight line through the logarithms of a pass gives its exponent.
Told are the median of the passes and a 95 % interval of their mean (Student's t). An exponent of 1
means that twice as much takes twice as long; below 1, that a part is the same for all sizes.
"""

import argparse
import ctypes
import os
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

from film_convert import written
from ndt_finetune import made_up as session
from neurocompanion import core
from neurocompanion.autolfads import data as spikes, pbt
from neurocompanion.autolfads.training import maker
from neurocompanion.recordings.read import read
from neurocompanion.recordings.standard import save, traces
from neurocompanion.recordings.video.convert import convert_film
from neurocompanion.sessions.pretraining import pretrain
from neurocompanion.training.fit import fit
from neurocompanion.worm_gnn.models import GNN
from neurocompanion.worm_gnn.training import cross_validation, cut, train_states
from neurocompanion.worm_scaling.data import Windows
from neurocompanion.worm_scaling.models import LSTM, next_step_loss
from neurocompanion.zebrafish.models import UNet3D
from turns import apart, peak, row, tell
from worm_gnn_population import made_up as gnn_worm
from worm_training import simulated_halves

Quantity = namedtuple("Quantity", "part what sizes unit job files", defaults=[None])


def worms(n, folder):
    "An epoch of the worm-scaling paper's LSTM."
    windows = Windows.from_arrays(simulated_halves(n), 8, batch=64)
    return lambda: fit(LSTM(64), next_step_loss, windows, epochs=1, keep="last")


def gnn_worms(n, folder):
    "Ten networks for each worm, as one population."
    pool = [gnn_worm(f"worm {i}", i) for i in range(n)]
    cuts, members = cut(pool), cross_validation(n, 1)
    return lambda: train_states(lambda: GNN(15, look=100), pool, members, cuts, epochs=3)


def sessions(n, folder):
    "An epoch of pretraining."
    pool = [session(i, 40, 40, 50) for i in range(n)]
    sizes = dict(token=32, width=32, heads=2, layers=2, feedforward=64)
    return lambda: pretrain(pool, epochs=1, settings=sizes, device="cpu")


def members(n, folder):
    "One generation of one epoch."
    small = dict(ic_encoder=32, ic=32, ci_encoder=32, controller=32, generator=48, factors=20)
    make = maker(spikes.lorenz(conditions=10, repeats=16, units=30, steps=50), small, batch=64,
                 device="cpu")
    return lambda: pbt.pbt(make, members=n, epochs=1, generations=1, engine="serial", window=None)


def voxels(n, folder):
    "A training step of the volumetric network, four planes."
    side = round((n / 4) ** 0.5)
    net = UNet3D(4, width=16, groups=4, resample=((1, 2, 2),) * 2)
    x, y = torch.randn(1, 4, 4, side, side), torch.randn(1, 1, 4, side, side)
    return lambda: F.l1_loss(net(x, 3), y).backward()


def files(n, folder):
    "Reading a folder of standard files."
    return lambda: read(folder)


def standard_files(n, folder):
    for i in range(n):
        x = np.random.default_rng(i).standard_normal((1500, 100), np.float32)
        save(traces(x, [f"?{k:03d}" for k in range(100)], np.arange(1500) / 3.0,
                    subject=f"worm{i}", source="made up"), folder / f"worm{i}.nc")


def pages(n, folder):
    "Converting a film to ΔF/F in 32 MiB."
    return lambda: convert_film(folder / "film.tif", folder / "film.zarr", planes=1,
                                sampling_rate=30.0, memory=32 << 20)


def film(n, folder): written(folder / "film.tif", n, 256)


QUANTITIES = {
    "worms": Quantity("worm_scaling", "an epoch of LSTM 64", (18, 36, 71, 142, 284), "worms",
                      worms),
    "gnn_worms": Quantity("worm_gnn", "a population of ten networks a worm", (1, 2, 4, 8, 16),
                          "worms", gnn_worms),
    "sessions": Quantity("sessions", "an epoch of pretraining", (2, 4, 8, 16, 32), "sessions",
                         sessions),
    "members": Quantity("autolfads", "a generation of a population, one process",
                        (2, 4, 8, 16, 32), "members", members),
    "voxels": Quantity("zebrafish", "a step of the volumetric network",
                       tuple(4 * s**2 for s in (32, 44, 64, 92, 128)), "voxels", voxels),
    "files": Quantity("recordings", "reading a folder of standard files", (4, 8, 16, 32, 64),
                      "files", files, standard_files),
    "pages": Quantity("recordings", "converting a film to ΔF/F in 32 MiB",
                      (16, 32, 64, 128, 256), "pages of 256²", pages, film)}


def once(name, n, folder):                     # which holds the files of both, if there are any
    "Processor seconds of a job and MiB of its peak, after the smallest one has warmed up."
    torch.set_num_threads(1)
    torch.manual_seed(0)
    core.keep_memory()
    q = QUANTITIES[name]
    q.job(q.sizes[0], folder / "small")()
    if sys.platform == "linux": ctypes.CDLL(None).malloc_trim(0)   # the warm-up's memory

    def work():
        job, start = q.job(n, folder / "own"), time.process_time()
        job()
        return time.process_time() - start
    seconds, size = peak(work)
    return seconds, size / 2**20


def measured(name, n):
    "The same with files, in a process that has read nothing yet."
    q = QUANTITIES[name]
    with tempfile.TemporaryDirectory() as folder:
        for which, size in (("small", q.sizes[0]), ("own", n)) if q.files else ():
            (place := Path(folder, which)).mkdir()
            apart(q.files, size, place)
        return apart(once, name, n, Path(folder))


def exponents(sizes, values):
    "Slope of the logarithms, for each pass."
    return [float(np.polyfit(np.log(sizes), np.log(v), 1)[0]) for v in values]


def interval(slopes):
    "95 % of the mean of the passes."
    half = stats.t.ppf(0.975, len(slopes) - 1) * stats.sem(slopes)
    return np.mean(slopes) - half, np.mean(slopes) + half


def grown(name, passes, quick):
    "Two rows: the exponent of time and that of memory."
    q = QUANTITIES[name]
    sizes = q.sizes[:4] if quick else q.sizes
    seen = np.empty((passes, len(sizes), 2))               # pass size seconds,MiB
    for turn in range(passes):
        for i in range(len(sizes))[::1 - 2 * (turn % 2)]: seen[turn, i] = measured(name, sizes[i])
    for k, what in enumerate(("time", "memory")):
        slopes = exponents(sizes, seen[:, :, k])
        r = row(q.part, f"{what} of {q.what}, {sizes[0]:,} to {sizes[-1]:,} {q.unit}",
                "exponent", slopes, threads=1, clock="processor")
        r["ours_low"], r["ours_high"] = map(float, interval(slopes))
        if not k: r["points"] = [(name, n, turn, *map(float, seen[turn, i]))
                                 for turn in range(passes) for i, n in enumerate(sizes)]
        if np.isfinite(slopes).all(): yield r


def for_table(device="cpu", quick=False, which=QUANTITIES, passes=None):
    for name in which: yield from grown(name, passes or (2 if quick else 4), quick)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("which", nargs="*", default=list(QUANTITIES), help=", ".join(QUANTITIES))
    ask.add_argument("--passes", type=int, default=4)
    for r in for_table(**vars(ask.parse_args())): print(tell(r), flush=True)
