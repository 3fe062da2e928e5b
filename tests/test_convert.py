"Films of every layout are one array; what is wrong with a file is one sentence; memory is bounded."
import os, signal, subprocess, sys, time

import numpy as np
import pytest
import tifffile

from neurocompanion.core import ParameterError, RecordingError
from neurocompanion.recordings.read import read
from neurocompanion.recordings.video.convert import convert_film, plan
from neurocompanion.recordings.video.film import coarser_video, df_over_f
from neurocompanion.recordings.video.reader import open_video

FILM = np.random.default_rng(0).integers(0, 4000, (12, 3, 20, 17)).astype(np.uint16)  # time z y x


def stack(path, pages, **how):
    "A file with a page each, as microscopes write it: one directory of tags after the other."
    with tifffile.TiffWriter(path, **how) as f:
        for p in pages: f.write(p, contiguous=False, metadata=None)


def parts(folder, film, size):
    "Files of `size` pages that go on where the last one ended; 10 comes after 9."
    folder.mkdir()
    pages = film.reshape(-1, *film.shape[2:])
    for i in range(0, len(pages), size): stack(folder / f"film_{i // size}.tif", pages[i:i + size])
    return folder


def saved(path, film, axes, **how):
    tifffile.imwrite(path, film, metadata={"axes": axes}, photometric="minisblack", **how)
    return path


def imagej(path, film, **how):
    tifffile.imwrite(path, film, imagej=True, metadata={"axes": "TZYX", "finterval": 0.5}, **how)
    return path


def plain(path, film, **how):
    stack(path, film.reshape(-1, *film.shape[2:]), **how)
    return path


VOLUMES = {   # layout → what makes it, what reading it must be told
    "planes": (lambda p: plain(p / "a.tif", FILM), {"planes": 3}),
    "bigtiff": (lambda p: plain(p / "a.tif", FILM, bigtiff=True), {"planes": 3}),
    "big-endian": (lambda p: plain(p / "a.tif", FILM, byteorder=">"), {"planes": 3}),
    "one block": (lambda p: saved(p / "a.tif", FILM, "TZYX"), {}),
    "z first": (lambda p: plain(p / "a.tif", FILM.swapaxes(0, 1)), {"axes": "ZTYX", "planes": 3}),
    "packed": (lambda p: saved(p / "a.tif", FILM, "TZYX", compression="zlib"), {}),
    "strips": (lambda p: saved(p / "a.tif", FILM, "TZYX", rowsperstrip=3), {}),
    "tiles": (lambda p: saved(p / "a.tif", FILM, "TZYX", tile=(16, 16)), {}),
    "ome": (lambda p: saved(p / "a.ome.tif", FILM, "TZYX", ome=True), {}),
    "ome, z first": (lambda p: saved(p / "a.ome.tif", FILM.swapaxes(0, 1), "ZTYX", ome=True), {}),
    "ome, big": (lambda p: saved(p / "a.ome.tif", FILM, "TZYX", ome=True, bigtiff=True), {}),
    "imagej": (lambda p: imagej(p / "a.tif", FILM), {}),
    "folder": (lambda p: parts(p / "a", FILM, 1), {"planes": 3}),
    "a file a volume": (lambda p: parts(p / "a", FILM, 3), {"planes": 3}),
    "files of volumes": (lambda p: parts(p / "a", FILM, 9), {"planes": 3}),
    "files that cut volumes": (lambda p: parts(p / "a", FILM, 8), {"planes": 3})}
PLANE = FILM[:, :1]
FRAMES = {
    "frames": (lambda p: plain(p / "a.tif", PLANE), {"planes": 1}),
    "named": (lambda p: plain(p / "a.tif", PLANE), {"axes": "TYX"}),
    "ome": (lambda p: saved(p / "a.ome.tif", PLANE[:, 0], "TYX", ome=True), {}),
    "imagej": (lambda p: imagej(p / "a.tif", PLANE), {}),
    "a file a frame": (lambda p: parts(p / "a", PLANE, 1), {}),
    "files of frames": (lambda p: parts(p / "a", PLANE, 5), {"planes": 1})}


@pytest.mark.parametrize("film, make, how", [
    *(pytest.param(FILM, *v, id=k) for k, v in VOLUMES.items()),
    *(pytest.param(PLANE, *v, id=f"plane, {k}") for k, v in FRAMES.items())])
def test_every_layout_is_the_same_film(tmp_path, film, make, how):
    array = open_video(make(tmp_path), **how)
    assert array.shape == film.shape and array.dtype == film.dtype
    for key in (..., 7, (slice(2, 11, 4), -1), (slice(None), slice(0, 1), slice(4, 9), 3),
                (3, 0, 5), (slice(5, 2),)):
        np.testing.assert_array_equal(array[key], film[key])


def test_axes_are_asked_for(tmp_path):
    "300 pages are 300 frames, or an error that says how to say so."
    stack(tmp_path / "a.tif", np.zeros((300, 4, 4), "u1"))
    with pytest.raises(RecordingError, match="found 300 pages.*planes=, 1 where every page"):
        open_video(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((300, 4, 4), "u1"), imagej=True,
                     metadata={"axes": "ZYX"})     # what ImageJ calls any stack
    with pytest.raises(RecordingError, match="found 300 pages"): open_video(tmp_path / "b.tif")
    assert open_video(tmp_path / "b.tif", planes=1).shape == (300, 1, 4, 4)
    assert open_video(imagej(tmp_path / "c.tif", FILM)).sampling_rate == 2


def cut(p):
    plain(p, FILM)
    p.write_bytes(p.read_bytes()[:-2000])


def cut_block(p):
    saved(p, FILM, "TZYX", ome=True)
    p.write_bytes(p.read_bytes()[:12000])


def other_size(p): stack(p, [*FILM[:, 0], np.zeros((20, 16), "u2")])
def colour(p): tifffile.imwrite(p, np.zeros((4, 20, 17, 3), "u1"), photometric="rgb")
def channels(p): saved(p, FILM[:, :2], "TCYX", ome=True)
def cut_pages(p): plain(p, FILM); p.write_bytes(p.read_bytes()[:9000])


@pytest.mark.parametrize("make, how, what", [
    (cut, {"planes": 3}, "cut short"), (cut_pages, {"planes": 1}, "cut short|damaged"),
    (cut_block, {}, "cut short|damaged"), (other_size, {"planes": 1}, "differ in size.*page 13"),
    (colour, {"planes": 1}, "in colour"), (channels, {}, "several channels"),
    (lambda p: plain(p, FILM), {"planes": 5}, "do not make whole volumes.*found 36"),
    *((lambda p: plain(p, FILM), {"axes": a}, "these axes do not fit")
      for a in ("TXYZ", "TCYX", "ZYX", "TTYX"))])
def test_what_is_wrong_is_one_sentence(tmp_path, make, how, what):
    make(tmp_path / "odd.tif")
    with pytest.raises(RecordingError, match=what) as e: open_video(tmp_path / "odd.tif", **how)[:]
    assert "odd.tif" in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 300


# ---- films in
CHILD = """
import threading
threading.stack_size(1 << 20)   # stacks are address space, which the limit is about
import os, resource, sys
import numpy as np, tifffile, zarr
from neurocompanion.recordings.video import convert
from neurocompanion.recordings.video.reader import open_video
film, out, limit, masks = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
def size(): return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
small = np.zeros((20, 1, 32, 32), "u2")
tifffile.imwrite(out + ".tif", small, metadata={"axes": "TZYX"}, photometric="minisblack")
convert.convert_film(out + ".tif", out + ".first", masks=np.ones((32, 32), int))  # threads, imports
resource.setrlimit(resource.RLIMIT_AS, (size() + limit,) * 2)
try: open_video(film, planes=1)[:]
except Exception as e: print("refused", type(e).__name__)
print("begun", flush=True)
convert.convert_film(film, out, planes=1, seconds=100, masks=masks or None, memory=limit)
print("done")
"""


def child(*what, **how):
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1",
           "NEUROCOMPANION_QUIET": "1", "BLOSC_NTHREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", CHILD, *map(str, what)], text=True, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


@pytest.fixture(scope="module")
def long_film(tmp_path_factory):
    "Ten times as large as the memory it will have, and the masks of its cells."
    folder, limit = tmp_path_factory.mktemp("long"), 24 << 20
    base = np.random.default_rng(0).integers(100, 900, (160, 224)).astype("u2")
    frames = 10 * limit // base.nbytes + 1
    with tifffile.TiffWriter(folder / "film.tif", bigtiff=True) as f:
        for t in range(frames): f.write(base + t % 7, contiguous=False, metadata=None)
    cells = np.arange(base.size).reshape(base.shape) // 400
    np.save(folder / "cells.npy", cells)
    return folder / "film.tif", folder / "cells.npy", limit, frames


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux knows them")
def test_a_film_of_ten_times_the_memory(long_film, tmp_path):
    film, masks, limit, frames = long_film
    run = child(film, tmp_path / "a.zarr", limit, masks)
    said, wrong = run.communicate()
    assert said.split() == ["refused", "MemoryError", "begun", "done"], wrong
    ds = read(tmp_path / "a.zarr")[0]
    assert ds["video"].shape == (frames, 1, 160, 224) and ds.attrs["units"] == "dF/F"
    part = open_video(film, planes=1)[:, :, 100:102, 7:9]
    want = df_over_f(part, 100)
    np.testing.assert_allclose(ds["video"][:, :, 100:102, 7:9].values, want, rtol=0, atol=1e-5)
    cells = np.load(masks)[None]
    np.testing.assert_allclose(ds["trace"].sel(cell=30).values, ds["video"].values[
        :, cells == 30].mean(1), rtol=0, atol=1e-5)
    one = read(tmp_path / "a.zarr/s1")[0]["video"][50, 0, 3, 4]
    np.testing.assert_allclose(one, ds["video"][50, 0, 6:8, 8:10].mean(), rtol=0, atol=1e-5)
    ds.close()


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_what_is_broken_off(long_film, tmp_path, how):
    film, masks, limit, _ = long_film
    run = child(film, tmp_path / "a.zarr", limit, "")
    assert run.stdout.readline() and run.stdout.readline() == "begun\n"
    for _ in range(400):
        if [*tmp_path.glob(".a.zarr.*/video/c")]: break
        time.sleep(0.02)
    run.send_signal(how)
    run.communicate()
    own = {"a.zarr.first", "a.zarr.tif"}
    assert run.returncode and not (tmp_path / "a.zarr").exists()
    if how != signal.SIGKILL: assert {p.name for p in tmp_path.iterdir()} == own
    tiny = np.ones((9, 1, 16, 16), "u1")
    tifffile.imwrite(tmp_path / "b.tif", tiny[:, 0], metadata={"axes": "TYX"},
                     photometric="minisblack")
    convert_film(tmp_path / "b.tif", tmp_path / "a.zarr", dff=False)  # tidies up
    assert {p.name for p in tmp_path.iterdir()} == own | {"b.tif", "a.zarr"}
    np.testing.assert_array_equal(read(tmp_path / "a.zarr")[0]["video"].values, tiny)


@pytest.mark.parametrize("shape, chunks, levels", [
    ((33, 1, 40, 24), None, 3), ((50, 5, 33, 17), None, 2), ((30, 18, 16, 21), (7, 4, 10, 9), 3)])
def test_boxes_do_not_show(tmp_path, shape, chunks, levels):
    "Any number of boxes gives the same film, coarse films and traces."
    x = np.random.default_rng(1).poisson(50, shape).astype("u2")
    cells = np.random.default_rng(2).integers(0, 5, shape[1:])
    tifffile.imwrite(tmp_path / "a.tif", x, metadata={"axes": "TZYX"}, photometric="minisblack")
    make = lambda name, memory: convert_film(tmp_path / "a.tif", tmp_path / name, seconds=12,
                                             masks=cells, levels=levels, chunks=chunks,
                                             memory=memory)
    most = next(m for m in range(20, 30) if fits(shape, chunks, levels, 1 << m))
    one, many = make("one.zarr", 1 << 29), make("many.zarr", 1 << most)
    v = df_over_f(x, 12)
    for level in ("", *(p.name for p in one.glob("s?"))):
        a, b = (read(p / level)[0] for p in (one, many))
        np.testing.assert_allclose(a["video"].values, v, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(a["video"].values, b["video"].values)
        if not level: np.testing.assert_allclose(a["trace"].values, b["trace"].values, atol=1e-5)
        f = (2 if v.shape[1] >= 16 else 1, 2, 2)
        v = coarser_video(v, f)


def fits(shape, chunks, levels, memory):
    try: return plan(shape, 2, 12, levels, chunks, memory)
    except ParameterError: return False


def test_chunks_of_any_size_and_no_room(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", FILM[:, 0], metadata={"axes": "TYX"},
                     photometric="minisblack")
    with pytest.raises(ParameterError, match="memory= at least"):
        convert_film(tmp_path / "a.tif", tmp_path / "a.zarr", memory=1 << 10)
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(RecordingError, match="something else is there"):
        convert_film(tmp_path / "a.tif", tmp_path / "b.zarr")
    assert not [*tmp_path.glob(".*")]
