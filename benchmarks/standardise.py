"""Standardising the simulated 287 worms from raw files, in one process and in two.

    python benchmarks/standardise.py [--worms SHARE] [--turns N] [--folder FOLDER]

Writes the pool of eight sources (to FOLDER, else to a temporary one), then reads and standardises
every worm. Beside it stands the least that any reader must do: take the same bytes from the disk
(the system's cache, by then) and decompress them. The numbers in text (all of Leifer, half of
Flavell) are not parsed there.
"""
import argparse
import gzip
import os
import tempfile
import zlib
from pathlib import Path

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import h5py

from neurocompanion.recordings.worm.simulate_pool import plan, read_pool, write_pool
from neurocompanion.worm_scaling.data import standardise
from turns import by_clock, row, runs, tell


def bare(path):
    "Take the bytes of a file, decompressed, and do nothing with them."
    if path.suffix == ".gz":
        with gzip.open(path) as f:
            while f.read(1 << 20): pass
    elif path.read_bytes()[:8] == b"MATLAB 5": _matlab5(path.read_bytes())
    elif h5py.is_hdf5(path):
        with h5py.File(path) as f: f.visititems(_numbers)


def _numbers(name, x):
    "Read a dataset of numbers."
    if isinstance(x, h5py.Dataset) and x.dtype.kind in "fiu": x[()]


def _matlab5(raw):
    "Decompress the elements of a MATLAB 5 file."
    at = 128
    while at < len(raw):
        kind, size = (int.from_bytes(raw[at + i:at + i + 4], "little") for i in (0, 4))
        if kind == 15: zlib.decompress(raw[at + 8:at + 8 + size])
        at += 8 + size


def for_table(device="cpu", quick=False, worms=None, turns=None, folder=None):
    worms, turns = worms or (0.02 if quick else 1.0), turns or (1 if quick else 3)
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_pool(folder or Path(temporary), worms=worms)
        count = sum(f["n"] for f in plan(worms=worms))
        size = sum(p.stat().st_size for p in paths) / 1e6
        whole = lambda n: lambda: read_pool(paths, then=standardise, workers=n)
        one, two, least = by_clock(runs([whole(1), whole(2), lambda: [bare(p) for p in paths]],
                                        turns), "wall")
    title = f"reading and standardising {count} worms, {len(paths)} files, {size:.0f} MB"
    yield row("recordings", title, "s", one, limit=(
        least, "taking the bytes, decompressed, s", [b / a for a, b in zip(one, least)]))
    yield row("recordings", f"{title}, in two processes", "s", two, one, "in one")


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--worms", type=float, default=1.0, help="share of the pool's worms")
    ask.add_argument("--turns", type=int, default=3)
    ask.add_argument("--folder", type=Path, help="where the pool is kept")
    for r in for_table(**vars(ask.parse_args())): print(tell(r), flush=True)
