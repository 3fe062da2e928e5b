"""What the machine reaches at its best: what all other numbers stand beside.

    python benchmarks/machine.py

The rate of one large product of matrices, on one thread and on all of them, and the rate at which
memory is copied, read and written counted.
"""

import os

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch

from turns import alone, by_clock, product, row, runs


def rows(quick=False, device="cpu"):
    turns, most = 3 if quick else 15, torch.get_num_threads()
    for threads in sorted({1, most}) if device == "cpu" else [1]:
        torch.set_num_threads(threads)
        multiply, gigaflop = product(1024 if quick else 4096, device)
        x, y = torch.zeros(2, (16 if quick else 64) << 20, device=device).unbind(0)
        ways = [multiply, lambda x=x, y=y: y.copy_(x)]
        times, copies = by_clock(runs(ways, turns), "wall")
        how = dict(threads=threads, device=device)
        yield row("machine", "a product of two large matrices, float32", "GFLOP/s",
                  [gigaflop / t for t in times], **how)
        yield row("machine", "copying memory", "GB/s", [2 * x.nbytes / 1e9 / t for t in copies],
                  **how)


if __name__ == "__main__": alone(rows, __doc__)
