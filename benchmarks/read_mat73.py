"""Reading a MATLAB 7.3 file of worms: `read_worms` against `mat73`, and against the disk.

    python benchmarks/read_mat73.py [FILE]

Reads FILE, else Kato 2015's file in `NEUROCOMPANION_MIRROR`, else a simulated one in that layout.
`read_worms` gives checked recordings; `mat73.loadmat` gives the bare arrays; reading every number
of the file through h5py is what a plain reader must do. Compared are processor seconds, in turns,
and by how much a fresh process grows at its peak. mat73 is no requirement of this project: where it
is not installed, its numbers for Kato's file stand beside, as they once were measured.

What `read_worms` gains is in the names: those that are written alike are read at once.
"""
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import h5py
import numpy as np

from neurocompanion import core
from neurocompanion.recordings.standard import traces
from neurocompanion.recordings.read import read as read_worms
from neurocompanion.recordings.worm.writer import write_zimmer
from turns import apart, by_clock, peak, row, runs, tell

KATO = dict(seconds=0.17, mib=27.0)           # of mat73 0.65, on MACHINE
MACHINE = "one core of an AMD EPYC, family 26"


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


def with_mat73(path):
    import mat73
    return mat73.loadmat(str(path), verbose=False)


def growth(read, path, small):
    "MiB by which this process grows at its peak, once it has read a small file to warm up."
    read(small)
    return peak(lambda: len(read(path)))[1] / 2**20


def named(other): return (other[0], "mat73") if other else ()


def for_table(device="cpu", quick=False, path=None):
    mirror, turns = core.mirror_dir(), 2 if quick else 9
    kato = [] if path or not mirror else sorted(mirror.glob("kato2015/WT_NoStim.mat"))
    both = [read_worms, with_mat73] if find_spec("mat73") else [read_worms]
    peer = lambda k: (KATO[k], "mat73", MACHINE) if kato and len(both) == 1 else ()
    with tempfile.TemporaryDirectory() as folder:
        path = path or (kato[0] if kato else simulated(folder))
        title = "Kato 2015's file of worms" if kato else "a MATLAB 7.3 file of worms"
        (Path(folder) / "small").mkdir()
        small = simulated(Path(folder) / "small", 1, 5, 50)
        grown = [[apart(growth, f, path, small) for _ in range(1 if quick else 3)] for f in both]
        ways = [lambda f=f: f(path) for f in (every_number, *both)]
        least, ours, *other = by_clock(runs(ways, turns), "processor")
    yield row("recordings", f"reading {title}", "s", ours, *named(other),
              limit=(least, "reading every number, s", [a / b for a, b in zip(least, ours)]),
              peer=peer("seconds"), clock="processor")
    yield row("recordings", f"memory for reading {title}", "MiB", grown[0], *named(grown[1:]),
              peer=peer("mib"))


if __name__ == "__main__":
    for r in for_table(path=Path(sys.argv[1]) if len(sys.argv) > 1 else None): print(tell(r))
