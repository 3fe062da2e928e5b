"""How fast a film is converted, beside reading it whole and beside copying the file.

    python benchmarks/film_convert.py [--pages 300] [--turns 5] [--folder .]

300 pages of 512² counts, in a TIFF file as a microscope leaves it, are converted as they are, and
to ΔF/F with levels and the traces of 400 cells. In turn with these the file is read whole and
written to Zarr, which takes as much memory as the film has, and copied on the same disk: into the
system's cache, and once more with a wait until all is on the disk, as after the conversions too.
How time and memory grow with the film is in `growth.py`.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import numpy as np

from turns import row, tell


def written(path, pages, side=512):
    "A file of pages, one directory of tags after the other; 64 pictures that come again."
    import tifffile
    rng = np.random.default_rng(0)
    base = rng.integers(100, 1000, (side, side))
    some = [rng.poisson(base).astype(np.uint16) for _ in range(64)]
    with tifffile.TiffWriter(path, bigtiff=True) as f:
        for i in range(pages): f.write(some[i % 64], contiguous=False, metadata=None)
    return path


def whole(film, out):
    "The few lines that one would write."
    import tifffile, zarr
    zarr.save_array(str(out), tifffile.imread(film)[:, None])


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


def beside(copy, ours): return copy, "a copy of the file, s", [c / o for c, o in zip(copy, ours)]


def for_table(device="cpu", quick=False, pages=None, turns=None, folder=None):
    from neurocompanion.recordings.video.convert import convert_film
    pages, turns = pages or (60 if quick else 300), turns or (1 if quick else 5)
    cells = np.zeros((512, 512), np.int32)
    at = np.arange(16, 496, 24)
    for i, (y, x) in enumerate((y, x) for y in at for x in at): cells[y:y + 9, x:x + 9] = i + 1
    with tempfile.TemporaryDirectory(dir=folder) as place:
        film, out = written(Path(place, "film.tif"), pages), Path(place, "out.zarr")
        convert = lambda **how: lambda out: convert_film(film, out, planes=1, sampling_rate=30.0,
                                                         **how)
        jobs = [lambda out: shutil.copyfile(film, out), lambda out: whole(film, out),
                convert(dff=False, levels=0), convert(masks=cells)]
        title = f"a film of {film.stat().st_size / 1e6:.0f} MB, TIFF to Zarr"
        for wait in (False, True):
            seen = [[timed(job, out, wait) for job in jobs] for _ in range(turns + 1)][1:]
            copy, plain, as_it_is, made = zip(*seen)
            end = ", until on the disk" if wait else ""
            yield row("recordings", f"{title}, as it is{end}", "s", as_it_is, plain,
                      "read whole, then written", limit=beside(copy, as_it_is))
            yield row("recordings", f"{title}, ΔF/F, levels, traces of 400 cells{end}", "s", made,
                      limit=beside(copy, made))


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--pages", type=int, default=300)
    ask.add_argument("--turns", type=int, default=5)
    ask.add_argument("--folder", help="on the disk that is meant; else the one of temporary files")
    asked = ask.parse_args()
    for r in for_table(pages=asked.pages, turns=asked.turns, folder=asked.folder):
        print(tell(r), flush=True)
