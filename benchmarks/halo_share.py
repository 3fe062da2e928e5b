"""What it costs to hold a volume in four parts.

    python benchmarks/halo_share.py [--size 4 64 64] [--width 16] [--repeats 3] [--half]

First, that it is exact: forecast, trace loss and gradients of four processes against one. Then four
gloo processes on this machine, 2 × 2 parts along y and x, each with one thread, take training steps
of the network with four resamplings; every exchange is timed and its bytes are counted. Processes
that share cores wait for one another, so seconds of exchange are an upper bound where there are
fewer cores than processes.

Printed: the halo's share of the voxels that a convolution reads at each resolution, as computed and
as counted in bytes, megabytes a process sends in a step for halos, the number of sums over all
processes, and the share of a step's time in both. Medians over steps of the mean over processes.
With --half steps are taken in bf16, as on a GPU: halos have half the bytes.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from neurocompanion.zebrafish import sharding
from neurocompanion.zebrafish.models import UNet3D
from turns import row

PARTS = (2, 2)


class Counter:
    "Seconds, calls and bytes of what it wraps."

    def __init__(self, f, size): self.f, self.size, self.seen = f, size, [0.0, 0, 0]

    def __call__(self, *args, **how):
        start = time.perf_counter()
        made = self.f(*args, **how)
        more = time.perf_counter() - start, 1, self.size(*args)
        self.seen = [a + b for a, b in zip(self.seen, more)]
        return made

    def taken(self):
        seen, self.seen = self.seen, [0.0, 0, 0]
        return seen


def sent(grid, axis, lower, upper):
    "Bytes that go to the processes beside this one."
    return sum(v.numel() * v.element_size() for v, step in ((lower, -1), (upper, 1))
               if grid.beside(axis, step) is not None)


def steps(rank, folder, size, how, repeats, half):
    "Training steps of one process."
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    swap = sharding._swap = Counter(sharding._swap, sent)
    everywhere = sharding._everywhere = Counter(sharding._everywhere, lambda x, *_: x.nbytes)
    grid, net = sharding.Grid(PARTS, (3, 4), rank), UNet3D(**how)
    sharding.shard(net, grid)
    torch.manual_seed(0)
    volume = lambda n: grid.cut(torch.randn(1, n, *size), sharding.multiple_of(net, (3, 4)))
    x, y = volume(net.context), volume(1)[:, 0]
    cells = grid.cut(torch.randint(0, 50, (1, 1, *size)), sharding.multiple_of(net, (3, 4)))[0, 0]
    loss, seen = sharding.part_loss(cells), []
    for _ in range(repeats + 1):
        swap.taken(), everywhere.taken()
        dist.barrier()
        start = time.perf_counter()
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half): value = loss(net, x, 3, y)
        value.backward()
        whole = time.perf_counter() - start
        seen.append([whole, *swap.taken(), *everywhere.taken()])
    made = torch.tensor(seen[1:], dtype=torch.double)
    dist.all_reduce(made)
    if not rank: torch.save(made / 4, f"{folder}/seen.pt")
    dist.destroy_process_group()


def halo_share(side, parts, factors):
    "At each resolution, voxels that a part amid others receives, per voxel that it holds."
    made = []
    for step in [(1, 1), *factors]:
        side = tuple(s / f for s, f in zip(side, step))
        a, b = (s / p for s, p in zip(side, parts))
        inner = tuple(2 if p > 2 else p - 1 for p in parts)       # sides with a neighbour
        made.append((a + inner[0]) * (b + inner[1]) / (a * b) - 1)
    return made


def measured(size, how, repeats, half=False):
    "Of each step, means over processes: seconds, and what went into halos and sums."
    with tempfile.TemporaryDirectory() as folder:
        start_processes(steps, (folder, size, how, repeats, half), 4,
                        start_method="fork" if sys.platform == "linux" else "spawn")
        return list(zip(*torch.load(f"{folder}/seen.pt", weights_only=True).tolist()))


def report(size, how, repeats, half):
    net = UNet3D(**how)
    share = halo_share(size[1:], PARTS, [f[1:] for f in net.resample])
    print("halo per voxel held, by resolution: " + ", ".join(f"{s:.1%}" for s in share))
    seen = measured(size, how, repeats, half)
    whole, swaps, exchanges, octets, sums, calls, more = map(statistics.median, seen)
    print(f"step {whole:.2f} s; a process sends {octets / 1e6:.2f} MB in {exchanges:.0f} halos, "
          f"{swaps / whole:.0%} of the time; {calls:.0f} sums over all of {more / 1e3:.1f} kB, "
          f"{sums / whole:.0%} of the time", flush=True)


def for_table(device="cpu", quick=False):
    "What a process sends in a step, in full and in half precision."
    how = dict(context=4, width=16, groups=4, resample=((1, 2, 2),) * 4)
    full, half = (measured((2, 32, 32) if quick else (4, 64, 64), how, 1 if quick else 3, h)[3]
                  for h in (False, True))
    yield row("zebrafish", "halos sent in a step, bf16, 4 processes", "MB", [v / 1e6 for v in half],
              [v / 1e6 for v in full], "float32", threads=1)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--size", nargs=3, type=int, default=[4, 64, 64], help="voxels z y x")
    ask.add_argument("--width", nargs="+", type=int, default=[16, 128])
    ask.add_argument("--repeats", type=int, default=3)
    ask.add_argument("--half", action="store_true", help="in bf16")
    asked = ask.parse_args()
    flat = ((1, 2, 2),) * 2
    made = sharding.compare(PARTS, (2, 16, 16), context=4, width=16, groups=4, resample=flat)
    print(f"four processes against one: forecast {made['forecast']:.1e} of {made['scale']:.2g}, "
          f"loss {made['loss']:.1e}, gradient {made['gradient']:.1e} of the largest", flush=True)
    for width in asked.width:
        how = dict(context=4, width=width, groups=4, resample=((1, 2, 2),) * 4)
        print(f"{tuple(asked.size)} voxels in 2 x 2 parts, {width} features, one thread each, "
              f"{os.cpu_count()} cores")
        report(asked.size, how, asked.repeats, asked.half)
