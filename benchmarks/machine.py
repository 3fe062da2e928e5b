"""What the machine reaches at its best: what all other numbers stand beside.

    python benchmarks/machine.py

The rate of one large product of matrices by the faster of PyTorch's two libraries, beside the one
that it asks first, on one thread and on all of them; and the rate at which memory is copied, bytes
read and bytes written counted.
"""

import os

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch

from turns import alone, by_clock, product, row, runs


def for_table(device="cpu", quick=False):
    turns, n, most = 3 if quick else 15, 1024 if quick else 4096, torch.get_num_threads()
    for threads in sorted({1, most}) if device == "cpu" else [1]:
        torch.set_num_threads(threads)
        multiply, gigaflop = product(n, device)
        a = torch.randn(n, n, device=device)
        x, y = torch.zeros(2, (16 if quick else 64) << 20, device=device).unbind(0)
        ways = [multiply, lambda a=a: a @ a, lambda x=x, y=y: y.copy_(x)]
        clock = "processor" if threads == 1 and device == "cpu" else "wall"
        times, usual, copies = by_clock(runs(ways, turns), clock)
        how = dict(threads=threads, device=device, clock=clock)
        yield row("machine", "a product of two large matrices, float32", "GFLOP/s",
                  *([gigaflop / t for t in v] for v in (times, usual)), "torch.mm", higher=True,
                  **how)
        yield row("machine", "copying memory", "GB/s", [2 * x.nbytes / 1e9 / t for t in copies],
                  **how)


if __name__ == "__main__": alone(for_table, __doc__)
