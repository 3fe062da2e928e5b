"""What a trivial run costs in a sweep, and as a `papermill` command.

    python benchmarks/sweep_overhead.py

The runs import what a paper's do and compute next to nothing. In a sweep, by one worker, the first
one waits for a warm process; every further one is what counts.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")
from neurocompanion.sweeps.engines import sweep
from turns import alone, row

CELLS = [("n = 1     # the run's only parameter\nseed = 0\nout = ''", ["parameters"]),
         ("import torch, pandas as pd, matplotlib.pyplot as plt\n"
          "rows = [dict(value=float(torch.tensor(n) + 1))]", []),
         ("from neurocompanion.sweeps.sweep import write_run\n"
          "write_run(rows, dict(n=n, seed=seed), out)", [])]


def toy(folder):
    "A template that imports what a paper's does and computes next to nothing."
    (folder / "sweeps").mkdir(parents=True)
    nb = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell(code, metadata={"tags": tags}) for code, tags in CELLS])
    nb.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "3"}
    nbformat.write(nb, folder / "run.ipynb")
    return folder


def in_a_sweep(folder, runs):
    "Seconds to the first run's end, and from each run's end to the next, one at a time."
    grid = folder / "sweeps" / f"{runs}.yaml"
    grid.write_text(json.dumps({"scales": {"tiny": {"grid": {"n": list(range(runs))}}}}))
    start = time.time()
    result = sweep(grid, scale="tiny", out=folder / f"out{runs}", workers=1)
    if result.exit_code: raise RuntimeError(str(result))
    ends = sorted(p.stat().st_ctime for p in (result.out / "runs").iterdir())
    return ends[0] - start, [b - a for a, b in zip(ends, ends[1:])]


def by_command(folder, k):
    "Seconds for one run with the `papermill` command."
    command = [sys.executable, "-m", "papermill", str(folder / "run.ipynb")]
    start = time.time()
    more = [str(folder / "out.ipynb"), "-p", "n", str(k), "-p", "out", str(folder / f"hand{k}")]
    subprocess.run(command + more, check=True, capture_output=True)
    return time.time() - start


def for_table(device="cpu", quick=False):
    commands, runs = (1, 4) if quick else (5, 40)
    with tempfile.TemporaryDirectory() as place:
        folder = toy(Path(place) / "toy")
        first, each = in_a_sweep(folder, runs)
        command = [by_command(folder, k) for k in range(commands)]
    n = len(each) // commands                                # runs that stand beside one command
    yield row("sweeps", "a further run of a sweep, one worker", "s",
              [statistics.fmean(each[k * n:(k + 1) * n]) for k in range(commands)], command,
              "the papermill command", aim=("ratio", 10))
    yield row("sweeps", "the first run of a sweep", "s", [first], command[:1],
              "the papermill command")


if __name__ == "__main__": alone(for_table, __doc__)
