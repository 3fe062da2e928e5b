"""That a film ten times as large as the memory of a process can be read through.

    python benchmarks/video_memory.py [--limit 96]

A film of counts (uint16, chunks of 8 frames of 64 × 64 voxels of a plane) ten times as large as the
limit is written to a temporary folder; packed, it takes about a third of that on the disk. Each job
then runs in a process of its own, whose address space may grow by no more than the limit after its
imports (`RLIMIT_AS`: the system refuses more): reading all frames through the training loader, ΔF/F
box by box, means over blocks of voxels into a new film, and traces of cells. That the limit bites
is shown by the last job, which asks for the whole film at once and is refused.

Printed: the film's size, and for each job its peak of resident memory above that after the imports.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import numpy as np

FRAME = (8, 256, 256)     # z y x


def written(path, size):
    "A film of `size` bytes, and how many its file has."
    import zarr
    frames = -(-size // (2 * int(np.prod(FRAME)))) // 8 * 8 + 8
    film = zarr.create_array(path, shape=(frames, *FRAME), dtype="u2", chunks=(8, 1, 64, 64),
                             dimension_names=("time", *"zyx"))
    rng = np.random.default_rng(0)
    base = rng.integers(100, 120, FRAME, np.uint16)
    for t in range(0, frames, 8): film[t:t + 8] = base + rng.integers(0, 4, (8, *FRAME), np.uint16)
    disk = sum(os.path.getsize(os.path.join(r, f)) for r, _, names in os.walk(path) for f in names)
    return film.nbytes, disk


def status(name):
    "A line of this process's status, in bytes."
    with open("/proc/self/status") as lines:
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(name + ":"))


def loader(film, folder, limit):
    "All frames, in the order of training."
    from neurocompanion.zebrafish.training import Samples
    samples = Samples(film, np.arange(0, film.shape[0] - 4, 4), 4, 1, memory=limit // 8)
    seen = {int(f) for draw in samples.draws()[:, 0] for f in range(draw[0], draw[0] + 5)}
    for _ in samples: pass
    return f"{len(samples)} samples, {len(seen)} frames"


def df_over_f(film, folder, limit):
    from neurocompanion.recordings.video.film import df_over_f
    from neurocompanion.recordings.video.reader import View
    T, nz, ny, nx = film.shape
    quarters = lambda n: [(n * i // 4, n * (i + 1) // 4) for i in range(4)]
    boxes = [(z, y, x) for z in range(nz) for y in quarters(ny) for x in quarters(nx)]
    for z, *box in boxes: df_over_f(View(film, box=[None, (z, z + 1), *box])[:], dark=90)
    return f"{len(boxes)} boxes of {film.shape[0]} frames"


def averaging(film, folder, limit):
    import zarr
    from neurocompanion.zebrafish.data import coarser_video
    small = (film.shape[0], film.shape[1], film.shape[2] // 4, film.shape[3] // 4)
    out = zarr.create_array(f"{folder}/small.zarr", shape=small, dtype="f4",
                            chunks=(8, *small[1:]), overwrite=True)
    for t in range(0, film.shape[0], 8): out[t:t + 8] = coarser_video(film[t:t + 8], (1, 4, 4))
    return f"{small}"


def traces(film, folder, limit):
    from neurocompanion.zebrafish.data import extract_traces
    cells = np.random.default_rng(0).integers(0, 300, film.shape[1:])
    return f"{extract_traces(film, cells, block=limit // 8).shape[1]} cells"


def everything(film, folder, limit):
    try: return f"NOT refused: {film[:].nbytes / 1e6:.0f} MB"
    except MemoryError: return "refused, as it should be"


JOBS = {f.__name__: f for f in (loader, df_over_f, averaging, traces, everything)}


def work(job, folder, limit):
    "One job under the limit."
    import torch
    from neurocompanion.recordings.video.reader import open_video
    from neurocompanion.zebrafish import data, training  # noqa: F401, before memory is limited
    torch.set_num_threads(1)
    film = open_video(f"{folder}/film.zarr")
    film[:1]                                          # the reader's own threads
    with open("/proc/self/clear_refs", "w") as f: f.write("5")      # the peak counts from here
    begin = status("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + limit,) * 2)
    start = time.perf_counter()
    what = JOBS[job](film, folder, limit)
    seconds = time.perf_counter() - start
    print(f"{job:10} {what}: peak {(status('VmHWM') - begin) / 1e6:.0f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--limit", type=int, default=96, help="MB that a process may take")
    ask.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    asked = ask.parse_args()
    limit = asked.limit << 20
    if asked.job: sys.exit(work(*asked.job, limit))
    with tempfile.TemporaryDirectory() as folder:
        size, disk = written(f"{folder}/film.zarr", 10 * limit)
        print(f"film of {size / 1e6:.0f} MB ({disk / 1e6:.0f} MB packed), limit of "
              f"{limit / 1e6:.0f} MB: {size / limit:.1f} x", flush=True)
        for job in JOBS:
            more = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}   # threads reserve no memory
            subprocess.run([sys.executable, __file__, "--limit", str(asked.limit), "--job", job,
                            folder], env={**os.environ, **more}, check=True)
