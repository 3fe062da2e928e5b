"""Reading a MATLAB 7.3 file of worms: `read_worms` against `mat73`, and against the disk.

    python benchmarks/read_mat73.py [FILE]

Reads FILE, else Kato 2015's file in `NEUROCOMPANION_MIRROR`, else a simulated one in that layout.
`read_worms` gives checked recordings; `mat73.loadmat` gives the bare arrays; reading every number
of the file through h5py is the least that any reader must do. Prints ratios of medians, measured
in turns. mat73 is no requirement of this project: without it that line is left out, and said so.
"""
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
from neurocompanion.recordings.worm import read_worms
from neurocompanion.recordings.worm_writers import write_kato


def simulated(folder, worms=5, neurons=110, T=3000):
    "A file like Kato 2015's: five worms, some hundred neurons, twenty minutes."
    rng = np.random.default_rng(0)
    names = ["AVAL", "AVAR", "RIML", "RIMR", *(f"?{i:03d}" for i in range(neurons - 4))]
    made = [traces(rng.standard_normal((T, neurons)), names, np.arange(T) / 2.9,
                   subject=f"worm{i}", source="simulated",
                   state=rng.choice(["fwd", "rev1", "nostate"], T)) for i in range(worms)]
    return write_kato(Path(folder) / "WT_NoStim.mat", made)


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


def given_file(folder):
    "The file to read, and what it is."
    if len(sys.argv) > 1: return Path(sys.argv[1])
    mirror = core.mirror_dir()
    real = sorted(mirror.glob("kato2015/WT_NoStim.mat")) if mirror else []
    return real[0] if real else simulated(folder)


def main():
    ways = {"read_worms": read_worms, "every number": every_number}
    if find_spec("mat73"):
        import mat73
        ways["mat73"] = lambda path: mat73.loadmat(str(path), verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        path = given_file(folder)
        print(f"{path.name}: {len(read_worms(path))} worms, {path.stat().st_size / 2**20:.1f} MiB")
        found = medians(ways, path)
        memory = {name: peak(ways[name], path) for name in ways if name != "every number"}
    ours = found["read_worms"]
    print(f"read_worms: {1e3 * ours:.0f} ms, {ours / found['every number']:.2f} × the time of "
          "reading every number of the file")
    if "mat73" in found: print(f"mat73: {found['mat73'] / ours:.2f} × the time of read_worms")
    else: print("mat73 is not installed: pip install mat73 to compare")
    for name, mib in memory.items(): print(f"{name}: {mib:.1f} MiB at its peak")


if __name__ == "__main__": main()
