"Films of every layout are one array; what is wrong with a file is one sentence; memory is bounded."
import numpy as np
import pytest

from neurocompanion.core import RecordingError
from neurocompanion.recordings.video.reader import Tiffs, open_video

tifffile = pytest.importorskip("tifffile")
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
    with pytest.raises(RecordingError, match="found 300 pages.*planes=, 1 where every page is a fr"):
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
