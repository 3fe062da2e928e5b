"""How fast a film is converted, and in how much memory.

    python benchmarks/film_convert.py [--pages 300] [--rounds 5] [--folder .]

300 pages of 512² counts, in a TIFF file as a microscope leaves it, are converted as they are and to
ΔF/F, with and without cells; between two conversions the file is copied on the same disk, once into
the system's cache and once with a wait until all is on the disk (`fsync`), as it is after a
conversion too. Printed: medians, MB of the film a second, and their share of the copy's.

Then films of 1, 2, 4 and 8 times as many pages are converted to ΔF/F in 128 MiB, each in a process
of its own: seconds, and the peak of resident memory above that after the imports.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import numpy as np
from video_memory import status


def written(path, pages, side=512):
    "A file of pages, one directory of tags after the other; 64 pictures that come again."
    import tifffile
    rng = np.random.default_rng(0)
    base = rng.integers(100, 1000, (side, side))
    some = [rng.poisson(base).astype(np.uint16) for _ in range(64)]
    with tifffile.TiffWriter(path, bigtiff=True) as f:
        for i in range(pages): f.write(some[i % 64], contiguous=False, metadata=None)
    return path


def on_disk(path):
    "Wait until a file, or all in a folder, is on the disk."
    for p in [path, *path.rglob("*")] if path.is_dir() else [path]:
        f = os.open(p, os.O_RDONLY)
        try: os.fsync(f)
        finally: os.close(f)


def timed(job, out, wait):
    "Seconds of a job that writes `out`, which is removed."
    os.sync()
    start = time.perf_counter()
    job(out)
    if wait: on_disk(out)
    seconds = time.perf_counter() - start
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return seconds


def speed(folder, pages, rounds):
    from neurocompanion.recordings.video.convert import convert_film
    film = written(folder / "film.tif", pages)
    size = pages * 512 * 512 * 2 / 1e6
    cells = np.zeros((512, 512), np.int32)
    at = np.arange(16, 496, 24)
    for i, (y, x) in enumerate((y, x) for y in at for x in at): cells[y:y + 9, x:x + 9] = i + 1
    jobs = {"copy": lambda out: shutil.copyfile(film, out)}
    for name, how in {"as it is": dict(dff=False, levels=0), "with levels": dict(dff=False),
                      "ΔF/F": dict(levels=0), "ΔF/F, levels": {},
                      "ΔF/F, levels, 400 cells": dict(masks=cells)}.items():
        jobs[name] = lambda out, how=how: convert_film(film, out, planes=1, sampling_rate=30.0,
                                                       **how)
    for wait in (False, True):
        took = {k: [] for k in jobs}
        for _ in range(rounds):
            for k, job in jobs.items(): took[k].append(timed(job, folder / "out.zarr", wait))
        for k, seconds in took.items():
            t = statistics.median(seconds)
            share = statistics.median(c / s for c, s in zip(took["copy"], seconds))
            print(f"{'on the disk' if wait else 'in the cache':12} {k:24} {t:6.2f} s "
                  f"{size / t:7.0f} MB/s {share:6.0%} of the copy", flush=True)


def work(film, memory):
    "One conversion; its peak."
    import zarr  # noqa: F401
    from neurocompanion.recordings.video import convert
    out, film = Path(film).with_suffix(".zarr"), Path(film)
    with open("/proc/self/clear_refs", "w") as f: f.write("5")      # the peak counts from here
    begin, start = status("VmRSS"), time.perf_counter()
    convert.convert_film(film, out, planes=1, sampling_rate=30.0, memory=memory)
    print(f"{film.stat().st_size / 1e6:8.0f} MB {time.perf_counter() - start:6.1f} s, peak "
          f"{(status('VmHWM') - begin) / 1e6:.0f} MB in {memory / 1e6:.0f} MB")
    shutil.rmtree(out)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--pages", type=int, default=300)
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--memory", type=int, default=128, help="MiB, for the films that grow")
    ask.add_argument("--folder", help="on the disk that is meant; else the one of temporary files")
    ask.add_argument("--work", help=argparse.SUPPRESS)
    asked = ask.parse_args()
    if asked.work: sys.exit(work(asked.work, asked.memory << 20))
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        folder = Path(folder)
        speed(folder, asked.pages, asked.rounds)
        for times in (1, 2, 4, 8):
            film = written(folder / "film.tif", times * asked.pages)
            subprocess.run([sys.executable, __file__, "--work", str(film), "--memory",
                            str(asked.memory)], check=True)
