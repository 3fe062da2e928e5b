"What a trivial run costs in a sweep, and as a `papermill` command: both measured here, in one run."
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")
from neurocompanion.sweeps.engines import sweep

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
    "Seconds to the first run's end and from each run's end to the next, one at a time."
    grid = folder / "sweeps" / f"{runs}.yaml"
    grid.write_text(json.dumps({"scales": {"tiny": {"grid": {"n": list(range(runs))}}}}))
    start = time.time()
    result = sweep(grid, scale="tiny", out=folder / f"out{runs}", workers=1)
    assert result.exit_code == 0, result
    ends = sorted(p.stat().st_ctime for p in (result.out / "runs").iterdir())
    return ends[0] - start, statistics.median(b - a for a, b in zip(ends, ends[1:]))


def by_command(folder, runs):
    "Seconds for one run with the `papermill` command, the median of `runs`."
    command = [sys.executable, "-m", "papermill", str(folder / "run.ipynb")]
    seconds = []
    for k in range(runs):
        start = time.time()
        more = [str(folder / "out.ipynb"), "-p", "n", str(k), "-p", "out", str(folder / f"hand{k}")]
        subprocess.run(command + more, check=True, capture_output=True)
        seconds.append(time.time() - start)
    return statistics.median(seconds)


def main(runs=12, commands=3):
    folder = toy(Path(tempfile.mkdtemp()) / "toy")
    try:
        first, each = in_a_sweep(folder, runs)
        command = by_command(folder, commands)
    finally: shutil.rmtree(folder.parent)
    print(f"the first run of a sweep       {first:6.2f} s  (the warm process starts)")
    print(f"every further run, one worker  {each:6.2f} s")
    print(f"the same run, papermill        {command:6.2f} s")
    print(f"ratio                          {command / each:6.1f}")
    print("as promised" if each <= 0.6 else "SLOWER THAN PROMISED: at most 0.6 s a further run")
    return int(each > 0.6)


if __name__ == "__main__": sys.exit(main())
