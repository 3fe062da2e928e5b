"Video: views and readers against plain indexing, bounded reading ahead, real recordings."
import json, threading, time

import numpy as np
import pytest
from hypothesis import given, strategies as st

from neurocompanion.core import ParameterError, RecordingError
from neurocompanion.recordings.read import read
from neurocompanion.recordings.video import film, masks
from neurocompanion.recordings.video import reader as V

FILM = np.arange(5 * 3 * 4 * 6, dtype=np.uint16).reshape(5, 3, 4, 6)   # time z y x


def keys(n):
    whole = st.integers(-n, n - 1)
    ends = st.one_of(st.none(), st.integers(-n - 1, n + 1))
    return st.one_of(whole, st.builds(slice, ends, ends, st.one_of(st.none(), st.integers(1, 3))))


any_key = st.tuples(*(keys(n) for n in FILM.shape)).flatmap(
    lambda k: st.integers(1, 4).map(lambda n: k[:n]))


@given(any_key, st.permutations(range(4)))
def test_views_index_like_numpy(key, axes):
    turned = V.View(FILM.transpose(axes), np.argsort(axes).tolist())
    np.testing.assert_array_equal(turned[key], FILM[key])
    assert turned.shape == FILM.shape and turned.nbytes == FILM.nbytes


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    "The film as a series of bricks, and as a picture of several pages a frame."
    from PIL import Image
    folder, tiffs = (tmp_path_factory.mktemp(k) for k in ("series", "tiffs"))
    t, nz, ny, nx = FILM.shape
    (folder / "conf.json").write_text(json.dumps(
        {"dims": [ny, nx, nz], "keytype": "int16", "valuetype": "uint16", "nvalues": t}))
    record = np.dtype([("key", "<i2", 3), ("value", "<u2", t)])
    np.array([((y, x, z), FILM[:, z, y, x]) for z in range(nz) for x in range(nx)
              for y in range(ny)], record).tofile(folder / "key.bin")
    for t, f in enumerate(FILM):
        first, *rest = [Image.fromarray(p) for p in f]
        first.save(tiffs / f"{t}.tif", save_all=True, append_images=rest)
    return V.Series(folder), V.open_video(tiffs, planes=3)


@given(key=any_key)
def test_files_index_like_numpy(on_disk, key):
    for video in on_disk: np.testing.assert_array_equal(video[key], FILM[key])


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("room", [2, 6])
def test_reading_ahead_is_bounded_and_in_order(threads, room):
    lock, held = threading.Lock(), [0, 0]

    def read(i):
        with lock:
            held[0] += 1
            held[1] = max(held)
        time.sleep(0.0005 * ((7 * i) % 5))
        return {"a": np.full(50, i, np.uint8), "b": (np.zeros(50, np.uint8),)}

    for i, got in enumerate(film.Ahead(read, range(60), memory=room * 100, threads=threads)):
        assert got["a"][0] == i
        with lock: held[0] -= 1
    assert i == 59 and held[1] <= room


def test_reading_ahead_can_be_left():
    before = threading.active_count()
    for _ in film.Ahead(lambda i: np.zeros(10), range(1000), memory=200): break
    time.sleep(0.05)
    assert threading.active_count() <= before + 1
    with pytest.raises(ParameterError): film.Ahead(len, [], threads=0)


def test_wrong_files_are_told(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"no picture")
    (tmp_path / "a.h5").write_bytes(b"no file")
    for name in ("a.tif", "a.h5", "b.zarr", "a.avi"):
        with pytest.raises(RecordingError, match=name): V.open_video(tmp_path / name)


# ---- real recordings
def test_real_series_and_pictures_agree(mirror):
    place = mirror / "zebrafish_thunder" / "fish"
    if not place.is_dir(): pytest.skip("the mirror has no light-sheet recording")
    series, pictures = V.open_video(place / "series"), V.open_video(place / "images", planes=2)
    assert series.shape == (240, 2, 76, 87) and pictures.shape == (20, 2, 76, 87)
    np.testing.assert_array_equal(series[:20], pictures[...])
    v = read(place / "series")[0]["video"].values
    cells = masks.segment(v.std(0), 2.5, (5, 1, 1))
    assert 40 < cells.max() < 100
    from neurocompanion.zebrafish.data import extract_traces
    trace = extract_traces(v, cells)
    loop = np.stack([v[:, cells == n].mean(1) for n in range(1, cells.max() + 1)], 1)
    np.testing.assert_allclose(trace, loop, rtol=0, atol=1e-6)


def test_real_clusters(mirror):
    files = sorted((mirror / "zebrafish_chen2018_units").glob("*.npz"))
    if not files: pytest.skip("the mirror has no cluster traces")
    sizes = [masks.read_clusters(f)[0]["trace"].shape for f in files]
    assert sizes == [(640, 115), (1200, 133), (500, 133), (600, 99)]


def test_real_suite2p_masks(mirror):
    place = mirror / "suite2p_pynapple"
    if not place.is_dir(): pytest.skip("the mirror has no suite2p regions")
    every = masks.suite2p_masks(place / "DERIVED_roi_masks.npz")
    some = masks.suite2p_masks(place / "DERIVED_roi_masks.npz", iscell=place / "iscell.npy")
    cells = np.load(place / "iscell.npy")[:, 0].astype(bool)
    assert len(np.unique(every)) - 1 <= len(cells) and every.max() <= len(cells)
    assert set(np.unique(some)) - {0} <= set(np.flatnonzero(cells) + 1)
