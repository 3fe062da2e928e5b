"""Whether frames come from the disk as fast as the volumetric network takes them.

    python benchmarks/video_loader.py [--shape 120 8 48 48] [--threads 1] [--device cpu]

A film of ΔF/F (float32 noise, chunks of one frame by 64 × 64 voxels, Zarr's usual compression) is
written to a temporary folder. Per network, three things take turns in one process: the loader alone
(`training.Samples`: four frames and one to come, read ahead), the network alone (a training step on
a batch in memory), and both together, where the loader reads while the network computes. The system
keeps the file in memory, so this is the cost of finding, unpacking and copying.

Told: frames a second of each (five to a sample), and of steps that read beside those from memory.
Medians. The loader must be at least as fast as the network takes frames.
"""

import argparse
import os
import tempfile
import time
from unittest.mock import patch

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import numpy as np
import torch

from neurocompanion import core
from neurocompanion.recordings.video.reader import open_video
from neurocompanion.zebrafish.models import UNet3D
from neurocompanion.zebrafish.training import Samples, voxel_mae
from turns import finish, row, tell

NETS = {"128 features, 4 resamplings": dict(width=128, resample=((1, 2, 2),) + ((2, 2, 2),) * 3),
        "16 features, 2 resamplings": dict(width=16, groups=4, resample=((1, 2, 2), (2, 2, 2)))}
C, H = 4, 32


def written(folder, shape):
    "A film of noise on the disk."
    import zarr
    film = zarr.create_array(f"{folder}/film.zarr", shape=shape, dtype="f4",
                             chunks=(1, shape[1], min(64, shape[2]), min(64, shape[3])),
                             dimension_names=("time", *"zyx"))
    rng = np.random.default_rng(0)
    for t in range(shape[0]): film[t] = rng.standard_normal(shape[1:], np.float32)
    return open_video(f"{folder}/film.zarr")


def step_of(net):
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4)

    def step(x, lead, y):
        optimiser.zero_grad()
        voxel_mae(net, x, lead, y).backward()
        optimiser.step()
    return step


def load(film, n):
    "Seconds for each sample of `n`."
    samples = Samples(film, np.arange(film.shape[0] - C - H), C, H, steps=n)
    start = time.perf_counter()
    for batch in samples: last = batch
    return (time.perf_counter() - start) / n, last


def both(film, step, n):
    "Seconds a step while frames are read."
    stream = iter(Samples(film, np.arange(film.shape[0] - C - H), C, H, steps=n))
    next(stream)                                      # the first one is always waited for
    start = time.perf_counter()
    for batch in stream: step(*batch)
    finish()
    return (time.perf_counter() - start) / (n - 1)


def for_table(device="cpu", quick=False, shape=None, threads=1, repeats=None):
    "For each network: how fast frames come, beside how fast it takes them, and alone together."
    core.keep_memory()
    torch.set_num_threads(threads)
    shape, repeats = shape or ((60, 4, 32, 32) if quick else (120, 8, 48, 48)), repeats or (
        1 if quick else 3)
    with tempfile.TemporaryDirectory() as folder, patch.dict(
            os.environ, NEUROCOMPANION_DEVICE=str(device)):
        film = written(folder, tuple(shape))
        for name in list(NETS)[1:] if quick else NETS:
            yield from compare(name, film, device, repeats)


def compare(name, film, device, repeats):
    "The rows of one network."
    torch.manual_seed(0)
    step, seen = step_of(UNet3D(C, **NETS[name]).to(device)), []
    for _ in range(repeats + 1):
        loading, batch = load(film, 40)
        start = time.perf_counter()
        step(*batch)
        finish()
        seen.append((loading, time.perf_counter() - start, both(film, step, 3)))
    loading, network, together = ([5 / t for t in v] for v in zip(*seen[1:]))
    how = dict(higher=True, threads=torch.get_num_threads(), device=device)
    yield row("zebrafish", f"frames from the disk, for {name}", "frames/s", loading, network,
              "the network takes", aim=("ratio", 1), **how)
    yield row("zebrafish", f"frames in training while they are read, {name}", "frames/s", together,
              network, "from memory", **how)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--shape", nargs=4, type=int, default=[120, 8, 48, 48], help="t z y x")
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument("--repeats", type=int, default=3)
    ask.add_argument("--device", default="cpu")
    for r in for_table(**vars(ask.parse_args())): print(tell(r), flush=True)
