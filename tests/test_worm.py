"Worm labels, the MATLAB 7.3 layout of Kato 2015, what is refused, and the real files."
import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurocompanion.core import RecordingError
from neurocompanion.recordings.standard import (
    NEURONS, check, open_recording, save, state_names, to_302, traces)
from neurocompanion.recordings.read import read as read_worms
from neurocompanion.recordings.worm.labels import clean_names
from neurocompanion.recordings.worm.writer import write_kato


def worm(seed=0, T=50, names=("AVAL", "?001", "VB1", "AS10", "DA2"), **changes):
    rng = np.random.default_rng(seed)
    return traces(rng.standard_normal((T, len(names))), list(names), np.arange(T) / 2.9,
                  **{**dict(subject=f"worm{seed}", source="simulated",
                            state=rng.choice(["fwd", "nostate", "rev1"], T)), **changes})


@pytest.fixture
def kato(tmp_path):
    return write_kato(tmp_path / "WT_NoStim.mat", [worm(0), worm(1, 40, ["?000", "RIML"])])


# labels


@pytest.mark.parametrize("raw, name, reason", [
    ("AVAL", "AVAL", None), ("AS10", "AS10", None), ("VC6", "VC6", None), ("IL1DL", "IL1DL", None),
    ("VB01", "VB1", "written VB01"), ("DA09", "DA9", "written DA09"),
                                               ("AS011", "AS11", "written AS011"),
    (" aval ", "AVAL", "written aval"), (["", "RIS"], "RIS", None),
    (["AVAL", "AVAR"], "AVAL", "the first name of a list"), (["VB01"], "VB1", "written VB01"),
    ("---", None, "no name in the file"), ("", None, "no name in the file"),
                                               (None, None, "no name"),
    ("  ", None, "no name in the file"), ([], None, "no name in the file"),
                                               ("12", None, "a number"),
    (7, None, "a number"), (3.5, None, "a number"), (float("nan"), None, "no name"),
    ("RIM?", None, "uncertain"), ("AVAL?", None, "uncertain"), ("?", None, "no name"),
    ("AVA", None, "a class: AVAL, AVAR"), ("VB", None, "a class: VB1"),
                                               ("RMD", None, "a class: RMDDL"),
    ("AWCON", None, "on which side"), ("AWCOFF", None, "on which side"), ("AWCL", "AWCL", None),
    ("GLRDL", None, "not one of the 302"), ("CEMDL", None, "not one of the 302"),
    ("(A", None, "not one of the 302"), ("VB012", None, "not one of the 302")], ids=str)
def test_one_label(raw, name, reason):
    names, report = clean_names([raw])
    assert names == [name or "?000"]
    assert [r["action"] for r in report] == ([] if reason is None else
                                             ["renamed" if name else "not labelled"])
    if reason: assert reason in report[0]["reason"] and report[0]["neuron"] == names[0]


def test_options():
    assert clean_names(["RIML?", "RIM?"], uncertain=True)[0] == ["RIML", "?001"]
    assert clean_names(["AWCON", "AWCOFF"], awc_on="L")[0] == ["AWCL", "AWCR"]


def test_twice_keeps_neither():
    names, report = clean_names(["AVAL", "VB1", "RIS", "VB01", "AVAL"])
    assert names == ["?000", "?001", "RIS", "?003", "?004"]
    assert [r["reason"] for r in report] == [f"{n} is given to neurons {w}" for n, w in (
        ("AVAL", "0, 4"), ("VB1", "1, 3"), ("VB1", "1, 3"), ("AVAL", "0, 4"))]


LABELS = st.one_of(st.sampled_from(NEURONS),
                   st.sampled_from(["", "---", "VB01", "AVA", "RIM?", "AWCON"]),
                   st.text(max_size=6), st.integers(0, 99), st.none(),
                   st.lists(st.sampled_from(NEURONS), max_size=2))


@given(st.lists(LABELS, max_size=30))
@settings(max_examples=100, deadline=None)
def test_any_labels(raw):
    names, report = clean_names(raw)
    assert len(names) == len(raw) == len(set(names))
    known = [n for n in names if n[0] != "?"]
    assert set(known) <= set(NEURONS)
    assert {r["neuron"] for r in report} >= set(names) - set(known)     # nothing in silence
    assert all(r["neuron"] in names and r["reason"] for r in report)
    assert clean_names(names)[0] == names


# the layout


def test_round_trip(kato, tmp_path):
    for made, read in zip([worm(0), worm(1, 40, ["?000", "RIML"])], read_worms(kato), strict=True):
        check(read)
        xr.testing.assert_equal(read, made)
        assert list(state_names(read)) == list(state_names(made))
        assert read.attrs["sampling_rate"] == made.attrs["sampling_rate"]
        assert read.attrs["source"] == "kato2015" and read.attrs["subject"] == made.attrs["subject"]
        assert len(read.attrs["sha256"]) == 64 and read.attrs["doi"].startswith("10.")
        xr.testing.assert_identical(open_recording(save(read, tmp_path / "a.nc")), read)


def test_same_worms_same_bytes(kato, tmp_path):
    (tmp_path / "b").mkdir()
    again = write_kato(tmp_path / "b" / "WT_NoStim.mat", [worm(0), worm(1, 40, ["?000", "RIML"])])
    assert again.read_bytes() == kato.read_bytes()


def test_layout_is_matlabs(kato):
    start = kato.read_bytes()[:128]
    assert start.startswith(b"MATLAB 7.3 MAT-file") and start.endswith(b"\0\2IM")
    with h5py.File(kato) as f:
        g = f["WT_NoStim"]
        assert g.attrs["MATLAB_class"] == b"struct" and g["tv"].attrs["MATLAB_class"] == b"cell"
        first = f[g["NeuronNames"][0, 0]]
        assert f[first[2, 0]][()].tobytes().decode("utf-16-le") == "VB01"
        assert f[g["deltaFOverF_bc"][0, 0]].shape == (5, 50) and f[g["tv"][0, 0]].shape == (1, 50)


def test_raw_labels_of_any_kind(tmp_path):
    labels = [["AVAL", ["AVAR", "RIML"], "RIM?", "", "VB01"]]
    (read,) = read_worms(write_kato(tmp_path / "a.mat", [worm()], labels))
    assert list(read.neuron.values) == ["AVAL", "AVAR", "?002", "?003", "VB1"]
    (read,
     ) = read_worms(write_kato(tmp_path / "a.mat", [worm()],
                               [["AVAL", "RIML?", "---", "7", "AVA"]]),
                         uncertain=True)
    assert list(read.neuron.values[read.labelled]) == ["AVAL", "RIML"]


def test_states_none_and_all_zero(kato, tmp_path):
    (read,) = read_worms(write_kato(tmp_path / "a.mat", [worm(state=None)]))
    assert set(state_names(read)) == {"nostate"}
    with h5py.File(kato, "a") as f: f[f["WT_NoStim/States"][0, 0]]["nostate"][:] = 0
    assert list(state_names(read_worms(kato)[0])) == list(state_names(worm(0)))


def test_neurons_with_gaps_are_dropped_and_reported(kato):
    with h5py.File(kato, "a") as f: f[f["WT_NoStim/deltaFOverF_bc"][0, 0]][2, 5:8] = np.nan
    first, second = read_worms(kato)
    assert list(first.neuron.values) == ["AVAL", "?001", "AS10",
                                         "DA2"] and second.sizes["neuron"] == 2
    assert {"neuron": "VB1", "label": "VB01", "action": "dropped",
            "reason": "3 of 50 frames are missing"} in first.report


def test_traces_the_other_way_round(kato):
    put(kato, "deltaFOverF_bc", worm(0).trace.values)
    xr.testing.assert_equal(read_worms(kato)[0], worm(0))


# what is refused


def put(path, field, value, i=0):
    "Another value for a field of worm `i`."
    with h5py.File(path, "a") as f:
        name = f"v{len(f)}"
        f[name] = value
        f["WT_NoStim"][field][i, 0] = f[name].ref
    return path


def drop(path, field):
    with h5py.File(path, "a") as f: del f["WT_NoStim"][field]
    return path


def shorten(path, field):
    with h5py.File(path, "a") as f:
        refs = f["WT_NoStim"][field][:1]
        del f["WT_NoStim"][field]
        f["WT_NoStim"][field] = refs
    return path


def struct(path, field, value):
    with h5py.File(drop(path, field), "a") as f: f["WT_NoStim"][field] = value
    return path


def flipped(path):
    "Bytes of a compressed matrix turned over."
    write_kato(path, [worm(T=3000)])
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


def states(path, **vectors):
    with h5py.File(path, "a") as f:
        for name, v in vectors.items():
            g = f[f["WT_NoStim/States"][1, 0]]
            if name in g: del g[name]
            g[name] = v
    return path


REFUSED = {
    "no tv": (lambda p: drop(p, "tv"),
              "field `tv` is missing: expected NeuronNames, deltaFOverF_bc, tv"),
    "no names": (lambda p: drop(p, "NeuronNames"), "field `NeuronNames` is missing"),
    "no traces": (lambda p: drop(p, "deltaFOverF_bc"), "field `deltaFOverF_bc` is missing"),
    "fewer worms in a field": (lambda p: shorten(p, "tv"), "disagree on the number of worms"),
    "short time": (lambda p: put(p, "tv", np.arange(49.0)[None]),
                   "worm0: traces and time vector do not "
                   "match: expected a side of 49 frames, found 5 × 50"),
    "time stands still": (lambda p: put(p, "tv", np.zeros((1, 50))),
                          "worm0, frame 1: time does not"),
    "time in frames": (lambda p: put(p, "tv", np.arange(50.0)[None] * 1e3),
                       "sampling rate disagree"),
    "rate zero": (lambda p: put(p, "fps", np.zeros((1, 1))), "not a rate"),
    "fewer names": (lambda p: put(p, "NeuronNames", np.zeros((0, 1), h5py.ref_dtype)),
                    "worm0: traces and names do not match: expected 5 names, found 0"),
    "no cells": (lambda p: struct(p, "tv", np.ones((1, 2))), "field `tv` is no cell array"),
    "states past their names": (lambda p: put(p, "States", np.full((1, 50), 0.5)),
                                "worm0: the states do not fit"),
    "no frames per second": (lambda p: put(p, "fps", np.ones((0, 1))),
                             "the file is damaged, or not"),
    "flipped bytes": (flipped, "the file is damaged, or not"),
    "two states at once": (lambda p: states(p, a=np.ones((1, 40)), b=np.ones((1, 40))),
                           "worm1: two states at once"),
    "state of other length": (lambda p: states(p, fwd=np.ones((1, 4))),
                              "worm1: state `fwd` does not fit: "
                              "expected 40 zeros and ones"),
    "state of twos": (lambda p: states(p, fwd=np.full((1, 40), 2.0)), "state `fwd` does not fit"),
    "another HDF5": (other_hdf5, "no reader knows this layout"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:9000]) and p, "the file is cut short"),
    "MATLAB 5": (lambda p: p.write_bytes(b"MATLAB 5.0 MAT-file".ljust(200)) and p,
                 "the file is damaged"),
    "empty": (lambda p: p.write_bytes(b"") or p, "no reader knows this layout"),
    "a folder without worms": (lambda p: (p.unlink(), p.parent)[1],
                               "there is no recording in it"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(kato, case):
    spoil, words = REFUSED[case]
    path = spoil(kato)
    with pytest.raises(RecordingError) as e: read_worms(path, strict=True)
    assert words in str(e.value) and str(e.value).startswith(str(path)), str(e.value)
    assert "\n" not in str(e.value)


# the real file

SHARED = "AIBL AIBR ALA AVAL AVAR AVBL AVER RID RIML RIMR RMED RMEL RMER VB1 VB2".split()


@pytest.fixture(scope="module")
def real(mirror):
    path = mirror / "kato2015" / "WT_NoStim.mat"
    if not path.is_file(): pytest.skip("needs kato2015/WT_NoStim.mat in the mirror")
    return path


def test_kato_2015(real, tmp_path):
    worms = read_worms(real)
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


def test_kato_2015_against_h5py(real):
    ds = read_worms(real)[3]
    with h5py.File(real) as f:
        g = f["WT_NoStim"]
        x = f[g["deltaFOverF_bc"][3, 0]][()]
        assert np.array_equal(ds.trace.values.T, x)
        assert np.array_equal(ds.time.values, f[g["tv"][3, 0]][0])
        for name, v in f[g["States"][3, 0]].items():
            assert np.array_equal(state_names(ds) == name, v[0] == 1), name


def test_kato_2015_written_again(real, tmp_path):
    worms = read_worms(real)
    for a, b in zip(worms, read_worms(write_kato(tmp_path / "WT_NoStim.mat", worms)), strict=True):
        xr.testing.assert_equal(a, b)
        assert a.report == b.report
    xr.testing.assert_identical(open_recording(save(worms[0], tmp_path / "a.nc")), worms[0])
