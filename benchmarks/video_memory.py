"""That a film ten times as large as the memory of a process can be read through.

    python benchmarks/video_memory.py [--limit 96]

A film of counts (uint16, chunks of 8 frames of 64 × 64 voxels of a plane) ten times as large as the
limit is written to a temporary folder; packed, it takes about a third of that on the disk. Each job
then runs in a process of its own, whose address space may grow by no more than the limit after its
imports (`RLIMIT_AS`: the system refuses more): reading all frames through the training loader, ΔF/F
box by box, means over blocks of voxels into a new film, and traces of cells. That the limit bites
is shown by the last job, which asks for the whole film at once and is refused.

Compared are the peak of a job's resident memory, above that after the imports, and the film.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import numpy as np

from turns import peak, row, status, tell

FRAME = (8, 256, 256)     # z y x


def written(path, size):
    "A film of `size` bytes or little more."
    import zarr
    frames = -(-size // (2 * int(np.prod(FRAME)))) // 8 * 8 + 8
    film = zarr.create_array(path, shape=(frames, *FRAME), dtype="u2", chunks=(8, 1, 64, 64),
                             dimension_names=("time", *"zyx"))
    rng = np.random.default_rng(0)
    base = rng.integers(100, 120, FRAME, np.uint16)
    some = [base + rng.integers(0, 4, (8, *FRAME), np.uint16) for _ in range(4)]
    for t in range(0, frames, 8): film[t:t + 8] = some[t // 8 % 4]
    return film.nbytes


def loader(film, folder, limit):
    "All frames, in the order of training."
    from neurocompanion.zebrafish.training import Samples
    samples = Samples(film, np.arange(0, film.shape[0] - 4, 4), 4, 1, memory=limit // 8)
    seen = {int(f) for draw in samples.draws()[:, 0] for f in range(draw[0], draw[0] + 5)}
    for _ in samples: pass
    return f"frames through the training loader, {len(seen)} of them"


def df_over_f(film, folder, limit):
    from neurocompanion.recordings.video.film import df_over_f
    from neurocompanion.recordings.video.reader import View
    T, nz, ny, nx = film.shape
    quarters = lambda n: [(n * i // 4, n * (i + 1) // 4) for i in range(4)]
    boxes = [(z, y, x) for z in range(nz) for y in quarters(ny) for x in quarters(nx)]
    for z, *box in boxes: df_over_f(View(film, box=[None, (z, z + 1), *box])[:], dark=90)
    return f"ΔF/F of {len(boxes)} boxes"


def averaging(film, folder, limit):
    import zarr
    from neurocompanion.zebrafish.data import coarser_video
    small = (film.shape[0], film.shape[1], film.shape[2] // 4, film.shape[3] // 4)
    out = zarr.create_array(f"{folder}/small.zarr", shape=small, dtype="f4",
                            chunks=(8, *small[1:]), overwrite=True)
    for t in range(0, film.shape[0], 8): out[t:t + 8] = coarser_video(film[t:t + 8], (1, 4, 4))
    return "means over 4 × 4 voxels"


def traces(film, folder, limit):
    from neurocompanion.zebrafish.data import extract_traces
    cells = np.random.default_rng(0).integers(0, 300, film.shape[1:])
    return f"traces of {extract_traces(film, cells, block=limit // 8).shape[1]} cells"


def everything(film, folder, limit):
    try: film[:]
    except MemoryError: return
    raise RuntimeError("the whole film at once was not refused: the limit does not bite")


JOBS = {f.__name__: f for f in (loader, df_over_f, averaging, traces, everything)}


def work(job, folder, limit):
    "One job under the limit."
    import torch
    from neurocompanion.recordings.video.reader import open_video
    from neurocompanion.zebrafish import data, training  # noqa: F401, before memory is limited
    torch.set_num_threads(1)
    film = open_video(f"{folder}/film.zarr")
    film[:1]                                          # the reader's own threads
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + limit,) * 2)
    what, most = peak(lambda: JOBS[job](film, folder, limit))
    with open(f"{folder}/{job}", "w") as f: f.write(f"{most} {what}")


def for_table(device="cpu", quick=False, limit=None):
    limit, times = (limit or 96) << 20, 3 if quick else 10
    more = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}        # threads reserve no memory
    with tempfile.TemporaryDirectory() as folder:
        size = written(f"{folder}/film.zarr", times * limit)
        for job in ("loader", "everything") if quick else JOBS:
            subprocess.run([sys.executable, __file__, "--work", job, folder, str(limit)],
                           env={**os.environ, **more}, check=True)
            with open(f"{folder}/{job}") as f: most, what = f.read().split(" ", 1)
            if what == "None": continue
            yield row("recordings", f"memory for {what}; a film {times} times as large as allowed",
                      "MB", [int(most) / 1e6], [size / 1e6], "the whole film",
                      aim=("ratio", times))


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--limit", type=int, default=96, help="MiB that a process may take")
    ask.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    asked = ask.parse_args()
    if asked.work: sys.exit(work(*asked.work[:2], int(asked.work[2])))
    for r in for_table(limit=asked.limit): print(tell(r), flush=True)
