"""Reading a MATLAB 7.3 file of worms: `read_worms` against `mat73`, and against the disk.

    python benchmarks/read_mat73.py [FILE]

Reads FILE, else Kato 2015's file in `NEUROCOMPANION_MIRROR`, else a simulated one in that layout.
`read_worms` gives checked recordings; `mat73.loadmat` gives the bare arrays; reading every number
of the file through h5py is what a plain reader must do. Prints ratios of medians, measured in
turns; what Python holds at its peak (tracemalloc); and by how much each way lets the memory of a
fresh process grow at its peak. mat73 is no requirement of this project: without it those lines are
left out, and said so.

What `read_worms` gains is in the names: those that are written alike are read at once.
"""
import multiprocessing
import statistics
import sys
import tempfile
import time
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np

from neurocompanion import core
from neurocompanion.recordings.standard import traces
from neurocompanion.recordings.read import read as read_worms
from neurocompanion.recordings.worm.writer import write_zimmer


def simulated(folder, worms=5, neurons=110, T=3000):
    "A file like Kato 2015's: five worms, some hundred neurons, twenty minutes."
    rng = np.random.default_rng(0)
    names = ["AVAL", "AVAR", "RIML", "RIMR", *(f"?{i:03d}" for i in range(neurons - 4))]
    made = [traces(rng.standard_normal((T, neurons)), names, np.arange(T) / 2.9,
                   subject=f"worm{i}", source="simulated",
                   state=rng.choice(["fwd", "rev1", "nostate"], T)) for i in range(worms)]
    return write_zimmer(Path(folder) / "WT_NoStim.mat", made)


def every_number(path):
    "Read all numbers of the file, and do nothing with them."
    def visit(name, x):
        if isinstance(x, h5py.Dataset) and x.dtype.kind in "fiu": x[()]

    with h5py.File(path) as f: f.visititems(visit)


def medians(ways, path, turns=5):
    "Median seconds of each way to read, in turns, after one to warm up."
    times = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, read in ways.items():
            start = time.perf_counter()
            read(path)
            if turn: times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def peak(read, path):
    "MiB that Python holds at its peak while it reads, with what it returns."
    tracemalloc.start()
    kept = read(path)
    most = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    del kept
    return most


def growth(name, path, small):
    "MiB by which this process grows at its peak, once it has read a small file to warm up."
    def size(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(key))

    read = WAYS[name]
    read(small)
    Path("/proc/self/clear_refs").write_text("5")   # the peak counts from here
    before = size("VmRSS")
    kept = read(path)
    return size("VmHWM") - before, len(kept)


def given_file(folder):
    "The file to read, and what it is."
    if len(sys.argv) > 1: return Path(sys.argv[1])
    mirror = core.mirror_dir()
    real = sorted(mirror.glob("kato2015/WT_NoStim.mat")) if mirror else []
    return real[0] if real else simulated(folder)


def with_mat73(path):
    import mat73
    return mat73.loadmat(str(path), verbose=False)


WAYS = {"read_worms": read_worms, "every number": every_number,
        **({"mat73": with_mat73} if find_spec("mat73") else {})}


def main():
    with tempfile.TemporaryDirectory() as folder:
        path, small = given_file(folder), simulated(Path(folder) / "small", 1, 5, 50)
        print(f"{path.name}: {len(read_worms(path))} worms, {path.stat().st_size / 2**20:.1f} MiB")
        found = medians(WAYS, path)
        compared = [name for name in WAYS if name != "every number"]
        traced = {name: peak(WAYS[name], path) for name in compared}
        fresh, grown = multiprocessing.get_context("spawn"), {}
        for name in compared if sys.platform == "linux" else ():
            with fresh.Pool(1) as pool: grown[name] = pool.apply(growth, (name, path, small))[0]
    ours = found["read_worms"]
    print(f"read_worms: {1e3 * ours:.0f} ms, {ours / found['every number']:.2f} × the time of "
          "reading every number of the file")
    if "mat73" in found: print(f"mat73: {found['mat73'] / ours:.2f} × the time of read_worms")
    else: print("mat73 is not installed: pip install mat73 to compare")
    for name in compared:
        process = f", {grown[name]:.1f} MiB in the process" if name in grown else ""
        print(f"{name}: {traced[name]:.1f} MiB at its peak in Python{process}")


if __name__ == "__main__": main()
