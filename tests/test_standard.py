"The data standard: every way to break a recording, and what is saved comes back bit for bit."
import csv, os, sys, warnings

import h5py
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings, strategies as st

from neurocompanion.core import RecordingError
from neurocompanion.recordings import schema, standard
from neurocompanion.recordings.read import read
from neurocompanion.recordings.standard import (
    NEURONS, check, open_recording, save, spikes, state_names, to_302, traces, video)

NAMES = ["AVAL", "AVAR", "?002"]


def worm(**changes):
    given = dict(trace=np.arange(60.0).reshape(20, 3), neuron=NAMES, time=np.arange(20) / 4,
                 subject="w1", source="test", state=["fwd"] * 12 + ["rev"] * 8,
                 behaviour={"speed": np.linspace(0, 1, 20)}, report=[{"neuron": "?002"}])
    return traces(**{**given, **changes})


def session(**changes):
    given = dict(counts=np.arange(60, dtype=np.uint8).reshape(2, 10, 3), bin_size=0.02,
                 subject="m1", source="test", unit_info={"area": ["V1", "V1", "CA1"]})
    return spikes(**{**given, **changes})


def fish(**changes):
    cells = np.zeros((2, 4, 5), np.int32)
    cells[0, :2], cells[1, 2:] = 1, 2
    given = dict(frames=np.arange(240, dtype=np.uint16).reshape(6, 2, 4, 5), subject="f1",
                 source="test", sampling_rate=1.1, cells=cells, trace=np.ones((6, 2)),
                 voxel_size=[4, 0.5, 0.5])
    return video(**{**given, **changes})


def changed(ds, name, value, at=None):
    "A copy with another value at one place of a variable, or another variable."
    new = ds.copy(deep=True)
    if at is None: return new.assign({name: value})
    values = new[name].values.copy()
    values[at] = value
    new[name] = (new[name].dims, values, new[name].attrs)
    return new


def less(ds, *keys):
    "A copy without some attributes."
    new = ds.copy()
    for key in keys: del new.attrs[key]
    return new


def note(ds, name, **attrs):
    "A copy with other attributes of a variable."
    new = ds.copy()
    new[name] = new[name].assign_attrs(attrs)
    return new


BROKEN = {  # what is wrong → a function that breaks a recording, and words of the error
    # anything
    "not a data set": (lambda: worm().trace, "expected an xarray.Dataset, found DataArray"),
    "no kind": (lambda: less(worm(), "kind"), "`kind` is missing or unknown: expected traces"),
    "unknown kind": (lambda: worm().assign_attrs(kind="lfp"), "found 'lfp'"),
    "a list of kinds": (lambda: worm().assign_attrs(kind=["traces"]), "`kind` is missing or unkn"),
    "an array of kinds": (lambda: worm().assign_attrs(kind=np.array(["traces", "spikes"])),
                          "`kind` is missing or unknown"),
    "no units": (lambda: less(worm(), "units"), "attribute `units` is missing"),
    "no source": (lambda: less(worm(), "source"), "attribute `source` is missing"),
    "no sampling rate": (lambda: less(worm(), "sampling_rate"), "attribute `sampling_rate`"),
    "negative rate": (lambda: worm().assign_attrs(sampling_rate=-3.0), "a number above 0, in Hz"),
    "rate is text": (lambda: worm().assign_attrs(sampling_rate="4 Hz"), "found '4 Hz'"),
    "doi is no text": (lambda: worm().assign_attrs(doi=10.1), "attribute `doi` is not text"),
    "reserved attribute": (lambda: note(worm(), "trace", scale_factor=2.0),
                           "`scale_factor` of `trace`"),
    "odd attribute name": (lambda: worm().assign_attrs({"my note": 1}), "found 'my note'"),
    "units are a time": (lambda: note(worm(), "speed", units="days since 2020"),
                         "instead of numbers"),
    "objects": (lambda: changed(worm(), "speed", ("time", np.array([None] * 20))), "found object"),
    "odd text": (lambda: changed(worm(), "t", ("time", np.array(["a\0b"] * 20))),
                 "text that a file"),
    "bytes": (lambda: worm().assign(note=("time", np.array([b"x"] * 20))), "Decode it with"),
    "slash in a name": (lambda: worm().rename(speed="m/s"), "'m/s' cannot name a variable"),
    # time
    "no time": (lambda: worm().drop_vars("time"), "`time` is missing or not numbers"),
    "time as dates": (lambda: worm().assign_coords(time=np.arange(20).astype("M8[s]")),
                      "expected seconds along time"),
    "time is NaN": (lambda: changed(worm(), "time", np.nan, 7), "frame 7: time is not finite"),
    "time says ms": (lambda: note(worm(), "time", units="ms"), "time has the wrong units"),
    "time says seconds": (lambda: note(worm(), "time", units="seconds"), 'and call them "s"'),
    # traces
    "other dimensions": (lambda: worm().rename(neuron="cell"), "found time × cell"),
    "trace is text": (lambda: worm().assign(trace=worm().trace.astype(str)),
                      "does not hold numbers"),
    "no frames": (lambda: worm().isel(time=slice(0)), "`trace` is empty"),
    "no neurons": (lambda: worm().isel(neuron=[]), "`trace` is empty"),
    "units disagree": (lambda: note(worm(), "trace", units="V"), "expected 'dF/F', found 'V'"),
    "no names": (lambda: worm().drop_vars("neuron"), "coordinate `neuron` is missing"),
    "numbers as names": (lambda: worm().assign_coords(neuron=[1, 2, 3]),
                         "expected one name each, text"),
    "infinite": (lambda: changed(worm(), "trace", -np.inf, (4, 1)), "time 1 s, neuron AVAR: "
                 "`trace` has gaps: expected finite numbers, found -inf (1 such values)"),
    "no labelled": (lambda: worm().drop_vars("labelled"), "`labelled` is missing"),
    "labelled of other length": (lambda: worm().drop_vars("labelled").assign(
        labelled=("other", np.ones(5, bool))), "expected 3 truth values along neuron, found 5"),
    "labelled as numbers": (lambda: worm().assign_coords(labelled=("neuron", [1, 1, 0])),
                            "3 × int64"),
    "state without names": (lambda: note(worm(), "state", flag_meanings=""), "codes without names"),
    "state over neurons": (lambda: worm().drop_vars("state").assign(state=("neuron", [0, 1, 0])),
                           "not one state per frame"),
    # spikes
    "half a spike": (lambda: changed(session(), "spikes", session().spikes / 2), "found 0.5"),
    "endless spikes": (lambda: changed(session(), "spikes", session().spikes + np.inf),
                       "found inf"),
    "spikes turned": (lambda: session().transpose("unit", "time", "trial"), "or time × unit"),
    "no units of spikes": (lambda: session().drop_vars("unit"), "coordinate `unit` is missing"),
    "a unit twice": (lambda: session().assign_coords(unit=[1, 2, 2]), "unit 2 is there twice"),
    "a trial twice": (lambda: session().assign_coords(trial=[5, 5]), "trial 5 is there twice"),
    "negative true rate": (lambda: changed(session(), "rate", session().spikes - 1.0),
                           "`rate` is not a rate"),
    "rate of other shape": (lambda: changed(session(), "rate", session().spikes[0]),
                            "`rate` does not fit: expected numbers over trial"),
    "rate as text": (lambda: changed(session(), "rate", session().spikes.astype(str)),
                     "`rate` does not fit: expected numbers over trial"),
    "gap in the rate": (lambda: changed(session(), "rate", session().spikes * np.nan), "found nan"),
    # video
    "flat video": (lambda: fish().isel(z=0), "expected time × z × y × x, found time × y × x"),
    "masks over time": (lambda: changed(fish(), "cells", fish().video.astype(int)),
                        "`cells` are not masks of this video"),
    "fractions of cells": (lambda: changed(fish(), "cells", fish().cells / 2),
                           "float64 over z × y × x"),
    "negative cell": (lambda: changed(fish(), "cells", -1, (1, 2, 3)), "negative number"),
    "flat voxels": (lambda: fish().assign_attrs(voxel_size=[1, 1]), "three lengths above 0"),
    "NaN in a frame": (lambda: changed(fish(), "video", np.nan * fish().video), "`video` has gaps"),
    "NaN in a cell's trace": (lambda: changed(fish(), "trace", np.nan, (3, 1)),
                              "cell 2: `trace` has"),
    "traces of neurons": (lambda: fish(trace=None).assign(
        trace=(("time", "neuron"), np.ones((6, 2)))), "`trace` does not fit: expected numbers ov")}


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_broken_is_told_and_never_saved(case, tmp_path):
    make, words = BROKEN[case]
    ds = make()
    with pytest.raises(RecordingError) as e: check(ds)
    text = str(e.value)
    assert words in text, text
    assert "\n" not in text and text.endswith("."), text
    assert e.value.expected is not None and e.value.found is not None and e.value.fix, text
    if isinstance(ds, xr.Dataset) and str(ds.attrs.get("subject", " ")).strip():
        assert text.startswith(f"{ds.attrs.get('kind', 'recording')} of {ds.attrs['subject']}")
    with pytest.raises(RecordingError): save(ds, tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make, words", [   # what the constructors refuse
    (lambda: worm(labelled=[True]), "`labelled` has the wrong shape: expected 3 (neuron), found 1"),
    (lambda: worm(states=["fwd"]), "expected fwd, found rev"),
    (lambda: worm(state=np.zeros(20, int)), "codes without names"),
    (lambda: worm(state=["", "rev"] * 10), "a state has no plain name"),
    (lambda: worm(behaviour={"v": ("time", [1, 2])}), "expected 20 (time)"),
    (lambda: worm(trace=np.ones((1, 3)), time=[0], state=None, behaviour=None),
     "`sampling_rate` is missing"),
    (lambda: worm(trace=np.ones((20, 3)) * 1j), "does not hold numbers"),
    (lambda: session(bin_size=0), "`bin_size` is not a duration"),
    (lambda: session(bin_size="20 ms"), "not a duration"),
    (lambda: session(counts=np.ones(5)), "`counts` has the wrong shape"),
    (lambda: session(unit_info={"area": ["V1"]}), "`area` has the wrong shape"),
    (lambda: fish(frames=np.ones((6, 4, 5))), "`frames` has the wrong shape"),
    (lambda: fish(sampling_rate=None), "`sampling_rate` is missing"),
    (lambda: fish(sampling_rate=0), "`sampling_rate` is missing or not a rate"),
    (lambda: state_names(worm(state=None)), "the states are not known")])
def test_constructors_refuse(make, words):
    with pytest.raises(RecordingError) as e: make()
    assert words in str(e.value), str(e.value)


# ---- files
def edit(key=None, value=None, trace=None):
    "Change an attribute, or one value, in the file."
    def change(path):
        with h5py.File(path, "a") as f:
            if trace is not None: f["trace"][3, 1] = trace
            if key is None: return
            f.attrs.pop(key, None)
            f.attrs[key] = value
    return change


def other(**attrs):
    def change(path):
        with h5py.File(path, "w") as f:
            f["x"] = np.ones(3)
            f.attrs.update(attrs)
    return change


def put(data): return lambda path: path.write_bytes(data)


BAD_FILES = {
    "empty": (put(b""), "found no bytes"),
    "text": (put(b"my notes"), "not an HDF5 file: expected HDF5, as in netCDF-4 and MATLAB 7.3, "
             "found b'my notes'"),
    "netCDF-3": (put(b"CDF\x01" + bytes(200)), "found a netCDF-3 file"),
    "MATLAB 5": (put(b"MATLAB 5.0 MAT-file".ljust(200)), "found a MATLAB 5 file"),
    "foreign": (other(), "not a recording of the standard: expected kind = traces or spikes or "
                "video, found kind = None, and in it x"),
    "foreign with our word": (other(kind="traces"), "variable `trace` is missing"),
    "edited": (edit(trace=np.nan), "neuron AVAR: `trace` has gaps"),
    "later": (edit("neurocompanion_standard", 99), "later standard: expected version 1, found 99"),
    "later in text": (edit("neurocompanion_standard", "2.1"), "expected version 1, found 2.1"),
    "not JSON": (edit("json_attributes", "source"), "the file is damaged"),
    "two kinds": (edit("kind", ["traces", "spikes"]), "not a recording of the standard"),
    "a number for JSON": (edit("json_attributes", 3), None),
    "bytes for a kind": (edit("kind", np.bytes_(b"traces")), None)}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case, tmp_path):
    spoil, words = BAD_FILES[case]
    path = save(worm(), tmp_path / "a.nc")
    spoil(path)
    if words is None:
        assert open_recording(path).attrs["kind"] == "traces"
        return
    with pytest.raises(RecordingError) as e: open_recording(path)
    assert str(e.value).startswith(str(path)) and words in str(e.value), str(e.value)
    assert "\n" not in str(e.value)


def test_any_damage_is_one_error(tmp_path):
    raw, rng = save(worm(), tmp_path / "a.nc").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        bad = bytearray(raw)
        for i in rng.integers(0, len(bad), 20): bad[i] = rng.integers(256)
        (tmp_path / "b.nc").write_bytes(bad)
        try: open_recording(tmp_path / "b.nc")
        except RecordingError as e: refused += str(e).startswith(str(tmp_path / "b.nc"))
    assert refused > 30


def test_paths_of_the_home_links_and_bad_places(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert save(worm(), "~/a.nc") == tmp_path / "a.nc"
    assert open_recording("~/a.nc").identical(worm())
    (tmp_path / "link.nc").symlink_to(tmp_path / "a.nc")
    save(session(), tmp_path / "link.nc")
    assert (tmp_path / "link.nc").is_symlink()
    assert open_recording(tmp_path / "a.nc").kind == "spikes"
    (tmp_path / "a.nc").unlink(), (tmp_path / "link.nc").unlink()
    os.mkfifo(tmp_path / "pipe.nc")
    (tmp_path / "file").write_text("")
    for place, says in [("", "it is a folder"), ("pipe.nc", "a device or pipe"),
                        ("file/a.nc", "could not be written")]:
        with pytest.raises(RecordingError, match=says): save(worm(), tmp_path / place)
    for place, says in [("pipe.nc", "not a file to read"), ("x" * 300, "found File name too long")]:
        with pytest.raises(RecordingError, match=says): open_recording(tmp_path / place)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(xr.Dataset, "to_netcdf", lambda *a, **k: (_ for _ in ()).throw(full))
    with pytest.raises(RecordingError, match="No space left"): save(worm(), tmp_path / "b.nc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "pipe.nc"]


def same(a, b):
    "Bit for bit: values, types, coordinates, attributes and their types."
    xr.testing.assert_identical(a, b)
    assert set(a.coords) == set(b.coords) and set(a.data_vars) == set(b.data_vars)
    assert repr(sorted(a.attrs.items())) == repr(sorted(b.attrs.items()))
    for n in a.variables:
        assert a[n].dtype == b[n].dtype and a[n].dims == b[n].dims, n
        assert a[n].values.tobytes() == b[n].values.tobytes(), n
        assert repr(sorted(a[n].attrs.items())) == repr(sorted(b[n].attrs.items())), n


def test_round_trip_and_no_trace_on_the_original(tmp_path):
    nested = [{"neuron": "?002", "why": {"frames": [1, 2], "µ": None, "sure": False}}, []]
    gap = np.array([0x7FF8DEADBEEF0001], np.uint64).view(float)[0]   # a NaN with a payload
    ds = worm(report=nested, note=["one"], voltage=np.float32(0.1), many=2**70, flags=[True, False],
              behaviour={"speed": np.full(20, gap), "posture": np.ones((20, 4), np.float32),
                         "lit": np.arange(20) % 2 == 0, "phase": ["ä", ""] * 10})
    for n, make in enumerate((ds, worm(report=[]), worm(report="nothing", state=None), session(),
                              fish(), session(counts=np.array([[1, np.nan, 0]])))):
        before = make.copy(deep=True)
        path = save(make, tmp_path / f"{n}.nc")
        same(open_recording(path), make)
        same(make, before)
        save(open_recording(path), path)                  # over itself
        same(open_recording(path), make)
    same(open_recording(save(ds.isel(time=slice(3, 9)), tmp_path / "cut.nc")),
         ds.isel(time=slice(3, 9)))


def test_text_of_every_make(tmp_path):
    for dtype in (object, np.dtypes.StringDType() if hasattr(np.dtypes, "StringDType") else str):
        ds = worm().assign_coords(neuron=("neuron", np.array(NAMES, dtype)))
        xr.testing.assert_equal(open_recording(save(ds, tmp_path / "a.nc")), worm())
    import pandas as pd
    table = session().assign_coords(area=("unit", pd.Series(["V1", "V1", "CA1"]).array))
    if isinstance(table.area.dtype, np.dtype): return           # an older pandas
    with pytest.raises(RecordingError, match=r"Convert it with .to_numpy"): check(table)


def test_other_programs_read_it_and_it_is_compressed(tmp_path):
    path = save(worm(), tmp_path / "a.nc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_dataset(path, engine="h5netcdf") as ds:
            assert ds.time.dtype == float and ds.time.attrs["units"] == "s"
            assert ds.labelled.dtype == bool and list(ds.neuron.values) == NAMES
            assert ds.trace.attrs["units"] == "dF/F" and '"neuron": "?002"' in ds.attrs["report"]
    with h5py.File(path) as f:
        assert f["trace"].shape == (20, 3) and f["trace"].attrs["units"] == "dF/F"
        assert [n.decode() for n in f["neuron"]] == NAMES
        assert f["trace"].dims[1][0].name == "/neuron"
    big = worm(trace=np.zeros((20000, 3)), time=np.arange(20000) / 4, state=None, behaviour=None)
    path = save(big, tmp_path / "a.nc")
    assert path.stat().st_size < 200_000
    with h5py.File(path) as f:
        assert f["trace"].compression == "gzip" and f["trace"].chunks == (20000, 3)


def test_large_stays_on_disk_and_is_saved_in_blocks(tmp_path, monkeypatch, film):
    monkeypatch.setattr(standard, "_LARGE", 100)
    monkeypatch.setattr(schema, "_BLOCK", 64)
    path = save(fish(), tmp_path / "a.nc")
    with open_recording(path) as ds:
        assert not ds.video.variable._in_memory
        assert ds.video[2:4].values.tobytes() == fish().video[2:4].values.tobytes()
        save(ds, tmp_path / "b.nc")
    same(open_recording(tmp_path / "b.nc", lazy=False), fish())
    # whole numbers are not read to look for gaps
    disk = film(4, 2, 3, 3, dtype="uint16")
    check(video(disk, sampling_rate=1, subject="f", source="s"))
    assert disk.read == []
    with h5py.File(tmp_path / "raw.h5", "w") as f: f["v"] = fish().video.values
    with h5py.File(tmp_path / "raw.h5") as f:
        ds = fish(frames=f["v"])
        assert not ds.video.variable._in_memory
        save(ds, tmp_path / "a.nc")
    same(open_recording(tmp_path / "a.nc"), fish())


def test_zarr(tmp_path, monkeypatch):
    path = save(fish(), tmp_path / "a.zarr")
    same(open_recording(path), fish())
    monkeypatch.setattr(standard, "_LARGE", 100)
    with open_recording(save(fish(), path)) as ds:        # over the old one, in blocks
        assert not ds.video.variable._in_memory
        xr.testing.assert_identical(ds, fish())
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    same(read(tmp_path)[0], fish())
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(RecordingError, match="something else is there"):
        save(fish(), tmp_path / "b.zarr")


def test_zarr_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(RecordingError, match=r"neurocompanion\[video\]"):
        save(fish(), tmp_path / "a.zarr")
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "zarr.json").write_text('{"node_type": "group"}')
    with pytest.raises(RecordingError, match="zarr is not installed"):
        open_recording(tmp_path / "b.zarr")


# ---- 302 names
def test_names():
    assert list(NEURONS) == sorted(NEURONS)
    known = "AVAL CANL CANR RIS VB1 VC6 AS11 DD6 DA9 VA12 VD13 PVPL I1L MI NSML AWCR RMDL SABD"
    assert set(known.split()) <= set(NEURONS)
    assert not {"VB01", "AVA", "AWCON", "GLRDL", "CEMDL", "PVX", "VC7", "AS12"} & set(NEURONS)
    for other, words in ((session(), "only traces have 302 rows"),
                         (worm(neuron=["AVAL", "VB01", "?"]), "VB01: a labelled neuron is none")):
        with pytest.raises(RecordingError, match=words): to_302(other)


def test_names_agree_with_the_connectome(mirror):
    path = mirror / "connectome" / "connectome_neurons.csv"
    if not path.is_file(): pytest.skip("needs connectome/connectome_neurons.csv in the mirror")
    from neurocompanion.recordings.worm.labels import clean_names
    with open(path) as f: rows = [r for r in csv.DictReader(f) if r["category"] != "male"]
    cells = {n: r for n, r in zip(clean_names([r["name"] for r in rows])[0], rows)}
    assert set(NEURONS) <= set(cells)
    nerve = {n for n, r in cells.items() if r["type_code"] in "sim" and n[0] != "?"}
    assert nerve | {"CANL", "CANR"} == set(NEURONS)


# ---- properties
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(PLAIN, lambda x: st.lists(x, max_size=3) | st.dictionaries(
    st.text(), x, max_size=3), max_leaves=8)
ONCE = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def worms(draw):
    T, n = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    elements = st.floats(allow_nan=False, allow_infinity=False, width=32)
    steps = draw(st.lists(st.floats(0.1, 0.5), min_size=T, max_size=T))
    labelled = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    names = draw(st.lists(st.sampled_from(NEURONS), min_size=n, max_size=n, unique=True))
    return traces(
        draw(hnp.arrays(dtype, (T, n), elements=elements)), names, np.cumsum(steps), source="drawn",
        labelled=labelled, subject=draw(st.text(min_size=1).filter(lambda s: s.strip())),
        report=draw(JSON.filter(lambda r: r is not None)), note=draw(JSON),
        behaviour={"v": draw(hnp.arrays(float, T, elements=st.floats(allow_nan=True)))},
        state=draw(st.none() | st.lists(st.sampled_from("abc"), min_size=T, max_size=T)))


@given(worms())
@ONCE
def test_any_worm(tmp_path, ds):
    check(ds)
    same(open_recording(save(ds, tmp_path / "a.nc")), ds)
    x, mask = to_302(ds)
    want = np.zeros_like(x)
    assert x.dtype == ds.trace.dtype and mask.dtype == bool
    for name, trace, named in zip(ds.neuron.values, ds.trace.values.T, ds.labelled.values):
        assert mask[NEURONS.index(name)] == named
        if named: want[NEURONS.index(name)] = trace
    assert np.array_equal(x, want) and mask.sum() == ds.labelled.values.sum()


@given(hnp.array_shapes(min_dims=2, max_dims=3, max_side=5).flatmap(lambda s: st.one_of(
    hnp.arrays(st.sampled_from([np.uint8, np.int64, np.uint16]), s, elements=st.integers(0, 255)),
    hnp.arrays(float, s, elements=st.integers(0, 9).map(float) | st.just(np.nan)))))
@ONCE
def test_any_session(tmp_path, counts):
    ds = spikes(counts, bin_size=0.01, subject="m", source="hypothesis")
    check(ds)
    same(open_recording(save(ds, tmp_path / "a.nc")), ds)


def test_states_by_name_and_masked_counts():
    counts = np.ma.masked_equal(np.arange(60).reshape(2, 10, 3), 7)
    assert int(session(counts=counts).spikes.isnull().sum()) == 1      # not observed
    ds = worm(state=[1] * 5 + [0] * 15, states=["rest", "run"])
    assert list(state_names(ds)) == ["run"] * 5 + ["rest"] * 15
    assert list(state_names(worm(state=["b"] * 20, states=["a", "b"]))) == ["b"] * 20
    by_name = worm(state=None).assign(state=("time", ["x"] * 20))  # names instead of codes
    check(by_name)
    assert set(state_names(by_name)) == {"x"}
