"Worm labels, the MATLAB 7.3 layout of Kato 2015, what is refused, and the real files."
import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, strategies as st

from neurocompanion.core import RecordingError
from neurocompanion.recordings.standard import (
    NEURONS, check, open_recording, save, state_names, to_302, traces)
from neurocompanion.recordings.read import read as read_worms
from neurocompanion.recordings.worm.labels import clean_names
from neurocompanion.recordings.worm.simulate import SHARED
from neurocompanion.recordings.worm.writer import write_zimmer


def worm(seed=0, T=50, names=("AVAL", "?001", "VB1", "AS10", "DA2"), **changes):
    rng = np.random.default_rng(seed)
    return traces(rng.standard_normal((T, len(names))), list(names), np.arange(T) / 2.9,
                  **{**dict(subject=f"worm{seed}", source="simulated",
                            state=rng.choice(["fwd", "nostate", "rev1"], T)), **changes})


@pytest.fixture
def kato(tmp_path):
    return write_zimmer(tmp_path / "WT_NoStim.mat", [worm(0), worm(1, 40, ["?000", "RIML"])])


# ---- labels
@pytest.mark.parametrize("raw, name, reason", [
    ("AVAL", "AVAL", None), ("VC6", "VC6", None), ("IL1DL", "IL1DL", None),
    (["", "RIS"], "RIS", None), ("AWCL", "AWCL", None), ("DA09", "DA9", "written DA09"),
    ("AS011", "AS11", "written AS011"),
    (" aval ", "AVAL", "written aval"), (["AVAL", "AVAR"], "AVAL", "the first name of a list"),
    (["VB01"], "VB1", "written VB01"), ("---", None, "no name in the file"),
    ("", None, "no name in the file"), (None, None, "no name"), ("  ", None, "no name in the file"),
    ([], None, "no name in the file"), ("12", None, "a number"), (7, None, "a number"),
    (3.5, None, "a number"), (float("nan"), None, "no name"), ("RIM?", None, "uncertain"),
    ("AVAL?", None, "uncertain"), ("?", None, "no name"), ("VB", None, "a class: VB1"),
    ("RMD", None, "a class: RMDDL"), ("AWCON", None, "on which side"),
    ("AWCOFF", None, "on which side"), ("GLRDL", None, "not one of the 302"),
    ("CEMDL", None, "not one of the 302"), ("(A", None, "not one of the 302"),
    ("VB012", None, "not one of the 302")], ids=str)
def test_one_label(raw, name, reason):
    names, report = clean_names([raw])
    assert names == [name or "?000"]
    assert [r["action"] for r in report] == ([] if reason is None else
                                             ["renamed" if name else "not labelled"])
    if reason: assert reason in report[0]["reason"] and report[0]["neuron"] == names[0]


def test_options_and_names_that_stand_twice():
    assert clean_names(["RIML?", "RIM?"], uncertain=True)[0] == ["RIML", "?001"]
    names, report = clean_names(["AVAL", "VB1", "RIS", "VB01", "AVAL"])  # neither is kept
    assert names == ["?000", "?001", "RIS", "?003", "?004"]
    assert [r["reason"] for r in report] == [f"{n} is given to neurons {w}" for n, w in (
        ("AVAL", "0, 4"), ("VB1", "1, 3"), ("VB1", "1, 3"), ("AVAL", "0, 4"))]


@given(st.lists(st.one_of(
    st.sampled_from(NEURONS), st.sampled_from(["", "---", "VB01", "AVA", "RIM?", "AWCON"]),
    st.text(max_size=6), st.integers(0, 99), st.none(),
    st.lists(st.sampled_from(NEURONS), max_size=2)), max_size=30))
def test_any_labels(raw):
    names, report = clean_names(raw)
    assert len(names) == len(raw) == len(set(names))
    known = [n for n in names if n[0] != "?"]
    assert set(known) <= set(NEURONS)
    assert {r["neuron"] for r in report} >= set(names) - set(known)     # nothing in silence
    assert all(r["neuron"] in names and r["reason"] for r in report)
    assert clean_names(names)[0] == names


# ---- the layout
def test_layout_is_matlabs_and_states_may_be_none_or_zero(kato, tmp_path):
    start = kato.read_bytes()[:128]
    assert start.startswith(b"MATLAB 7.3 MAT-file") and start.endswith(b"\0\2IM")
    with h5py.File(kato) as f:
        g = f["WT_NoStim"]
        assert g.attrs["MATLAB_class"] == b"struct" and g["tv"].attrs["MATLAB_class"] == b"cell"
        first = f[g["NeuronNames"][0, 0]]
        assert f[first[2, 0]][()].tobytes().decode("utf-16-le") == "VB01"
        assert f[g["deltaFOverF_bc"][0, 0]].shape == (5, 50) and f[g["tv"][0, 0]].shape == (1, 50)


def test_states_none_and_all_zero(kato, tmp_path):
    (read,) = read_worms(write_zimmer(tmp_path / "a.mat", [worm(state=None)], root="a"))
    assert set(state_names(read)) == {"nostate"}
    with h5py.File(kato, "a") as f: f[f["WT_NoStim/States"][0, 0]]["nostate"][:] = 0
    assert list(state_names(read_worms(kato)[0])) == list(state_names(worm(0)))


# ---- what is refused
def edited(change):
    "A function of a path that changes the file's struct, and gives the path."
    def edit(path):
        with h5py.File(path, "a") as f: change(f, f["WT_NoStim"])
        return path
    return edit


def put(field, value, i=0):
    "Another value for a field of worm `i`."
    def change(f, g):
        f["other"] = value
        g[field][i, 0] = f["other"].ref
    return edited(change)


def replace(field, value=None):
    "Another field, made of the old one, or none."
    def change(f, g):
        old = g[field][:]
        del g[field]
        if value is not None: g[field] = value(old) if callable(value) else value
    return edited(change)


def short_state(f, g):
    inner = f[g["States"][1, 0]]
    del inner["fwd"]
    inner["fwd"] = np.ones((1, 4))


def flipped(path):
    "Bytes of a compressed matrix turned over."
    write_zimmer(path, [worm(T=3000)])
    with h5py.File(path) as f:
        d = f[f["WT_NoStim/deltaFOverF_bc"][0, 0]].id
        start, size = d.get_chunk_info(0).byte_offset, d.get_chunk_info(0).size
    data = bytearray(path.read_bytes())
    for i in range(start + 512 + 20, start + 512 + size - 20): data[i] ^= 255
    path.write_bytes(data)
    return path


def other_hdf5(path):
    with h5py.File(path, "w") as f: f["images/stack"] = np.ones((3, 2))
    return path


@pytest.mark.parametrize("spoil, words", [
    (replace("tv", lambda old: old[:1]), "disagree on the number of worms"),
    (replace("tv", np.ones((1, 2))), "field `tv` is no cell array"),
    (put("tv", np.arange(50.0)[None] * 1e3), "sampling rate disagree"),
    (put("NeuronNames", np.zeros((0, 1), h5py.ref_dtype)),
     "worm0: traces and names do not match: expected 5 names, found 0"),
    (put("States", np.full((1, 50), 0.5)), "worm0: the states do not fit"),
    (put("fps", np.ones((0, 1))), "the file is damaged, or not"),
    (flipped, "the file is damaged, or not"),
    (edited(short_state), "worm1: state `fwd` does not fit: expected 40 zeros and ones"),
    (other_hdf5, "it is not said which side is time"),
    (lambda p: p.write_bytes(b"MATLAB 5.0 MAT-file".ljust(200)) and p, "the file is damaged"),
    (lambda p: p.write_bytes(b"") or p, "no reader knows this layout")])
def test_refused(kato, spoil, words):
    path = spoil(kato)
    with pytest.raises(RecordingError) as e: read_worms(path, strict=True)
    assert words in str(e.value) and str(e.value).startswith(str(path)), str(e.value)
    assert "\n" not in str(e.value)


# ---- the real file
def test_kato_2015(mirror, tmp_path):
    "Known counts, every value against h5py, and what is written again is read again."
    path = mirror / "kato2015" / "WT_NoStim.mat"
    if not path.is_file(): pytest.skip("needs kato2015/WT_NoStim.mat in the mirror")
    worms = read_worms(path)
    assert [int(ds.labelled.sum()) for ds in worms] == [38, 44, 32, 47, 32]
    assert [ds.sizes["neuron"] for ds in worms] == [109, 135, 131, 125, 129]
    assert [ds.sizes["time"] for ds in worms] == [3137, 3134, 3059, 3311, 3021]
    known = [set(ds.neuron.values[ds.labelled.values]) for ds in worms]
    assert set(SHARED) <= set.intersection(*known) and len(set.union(*known)) == 58
    for ds, names in zip(worms, known):
        check(ds)
        assert names <= set(NEURONS) and to_302(ds)[1].sum() == len(names)
        assert len([r for r in ds.report if r["action"] == "not labelled"]) == (~ds.labelled).sum()
        assert ds.state.attrs["flag_meanings"] == "dt fwd nostate rev1 rev2 revsus slow vt"
        assert 1079 < float(ds.time[-1]) < 1080 and 2.79 < ds.sampling_rate < 3.07
    with h5py.File(path) as f:
        g = f["WT_NoStim"]
        assert np.array_equal(worms[3].trace.values.T, f[g["deltaFOverF_bc"][3, 0]][()])
        assert np.array_equal(worms[3].time.values, f[g["tv"][3, 0]][0])
        for name, v in f[g["States"][3, 0]].items():
            assert np.array_equal(state_names(worms[3]) == name, v[0] == 1), name
    again = read_worms(write_zimmer(tmp_path / "WT_NoStim.mat", worms))
    for a, b in zip(worms, again, strict=True):
        xr.testing.assert_equal(a, b)
        assert a.report == b.report
    xr.testing.assert_identical(open_recording(save(worms[0], tmp_path / "a.nc")), worms[0])
