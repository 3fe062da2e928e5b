"""Standardising the simulated 287 worms from raw files, source by source and in two processes.

    python benchmarks/standardise.py [--worms SHARE] [--turns N] [--folder FOLDER]

Writes the pool of eight sources (to FOLDER, else to a temporary one), then reads and standardises
every worm: each source in one process, and all files in one and in two. Beside it stands the least
that any reader must do: take the same bytes from the disk (the system's cache, by then) and
decompress them. The numbers in text (all of Leifer, half of Flavell) are not parsed there, hence
their ratio. Prints medians over the turns, after one to warm up.
"""
import argparse
import gzip
import statistics
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path

import h5py

from neurocompanion.recordings.worm.simulate_pool import POOL, plan, read_pool, write_pool
from neurocompanion.recordings.read import read as read_worms
from neurocompanion.worm_scaling.data import standardise


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


def seconds(do, turns):
    "Median seconds of `do`, after one turn to warm up."
    took = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        do()
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:])


def by_source(paths, turns):
    "Seconds to read, to standardise what was read, and to take the bare bytes."
    return (seconds(lambda: [read_worms(p) for p in paths], turns),
            seconds(lambda: read_pool(paths, then=standardise, workers=1), turns),
            seconds(lambda: [bare(p) for p in paths], turns))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--worms", type=float, default=1.0, help="share of the pool's worms")
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--folder", type=Path, help="where the pool is kept")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, start = a.folder or Path(temporary), time.perf_counter()
        paths = write_pool(folder, worms=a.worms)
        wrote = time.perf_counter() - start
        report(paths, a, wrote)


def report(paths, a, wrote):
    "Measure and print."
    count = sum(f["n"] for f in plan(worms=a.worms))
    size = sum(p.stat().st_size for p in paths)
    print(f"{count} worms in {len(paths)} files, {size / 1e6:.0f} MB, written in {wrote:.1f} s")
    print(f"{'one process':12}{'MB':>6}{'read':>9}{'read + standardise':>20}{'bare bytes':>12}"
          f"{'ratio':>7}")
    for name in POOL:
        own = [p for p in paths if p.parent.name == name]
        read, both, least = by_source(own, a.turns)
        print(f"{name:12}{sum(p.stat().st_size for p in own) / 1e6:6.0f}{read:7.2f} s"
              f"{both:18.2f} s{least:10.2f} s{both / least:7.1f}")
    one, two = (seconds(partial(read_pool, paths, then=standardise, workers=n), a.turns)
                for n in (1, 2))
    print(f"all, one process: {one:.1f} s; two: {two:.1f} s ({one / two:.2f} × as fast); "
          "asked for: below 20 s")


if __name__ == "__main__": main()
