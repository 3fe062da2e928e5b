"Every worm source: reader(writer(x)) = x, odd cases, what is refused, and the real files."
import json, shutil

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings, strategies as st

from neurocompanion.core import RecordingError
from neurocompanion.recordings.simulate import observed
from neurocompanion.recordings.worm.simulate import worms
from neurocompanion.recordings.standard import (
    NEURONS, check, open_recording, save, state_names, traces)
from neurocompanion.recordings.read import read as read_worms
from neurocompanion.recordings.worm.labels import SOURCES, fill_gaps
from neurocompanion.recordings.worm.zimmer import Mat73
from neurocompanion.recordings.worm.writer import (
    WRITERS, ZIMMER, expected, write_flavell_h5, write_flavell_json, write_flavell_labels,
    write_leifer, write_worms, write_yemini, write_zimmer)

LAYOUTS = [v for layouts in WRITERS.values() for v in layouts]


@pytest.fixture(scope="module")
def truth():
    return [observed(w) for w in worms(3, seed=7, duration=[90, 100, 110], neurons=40, labelled=25)]


def same(read, made, layout):
    "What was read is what was written, in all that the layout holds."
    check(read)
    want = expected(made, layout)
    xr.testing.assert_equal(read[["trace"]], want[["trace"]])
    if "state" in want: assert list(state_names(read)) == list(state_names(want))
    assert read.source == layout.removesuffix("_stim").partition("_")[0]
    assert read.doi.startswith("10.") and len(read.sha256) == 64


# ---- reader(writer(x)) = x
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(truth, layout, tmp_path):
    "Three worms; then one whose time is uneven, which only one layout cannot say."
    assert set(WRITERS) == set(SOURCES) and len(WRITERS) == 8
    read = read_worms(write_worms(tmp_path, truth, layout))
    assert len({ds.subject for ds in read}) == 3
    for ds, made in zip(read, truth, strict=True): same(ds, made, layout)
    xr.testing.assert_identical(open_recording(save(read[0], tmp_path / "a.nc")), read[0])
    if layout == "yemini2021": return
    steps = np.random.default_rng(0).uniform(0.2, 0.5, truth[0].sizes["time"])
    made = truth[0].assign_coords(time=np.cumsum(steps))
    (tmp_path / "uneven").mkdir()
    same(read_worms(write_worms(tmp_path / "uneven", [made], layout))[0], made, layout)


@st.composite
def recordings(draw):
    made = []
    for i in range(draw(st.integers(1, 3))):
        named = draw(st.lists(st.sampled_from(NEURONS), min_size=1, max_size=8, unique=True))
        order = draw(st.permutations([*named, *["?"] * draw(st.integers(0, 3))]))
        names = [n if n != "?" else f"?{k:03d}" for k, n in enumerate(order)]
        T = draw(st.integers(12, 40))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        state = rng.choice(["forward", "reversal", "turn"], T)
        made.append(traces(rng.standard_normal((T, len(names))), names, np.arange(T) / 3.0,
                           subject=f"w{i}", source="simulated", state=state, sampling_rate=3.0))
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@settings(max_examples=8,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_worms_come_back(layout, tmp_path, data):
    made = data.draw(recordings())
    shutil.rmtree(tmp_path / "w", ignore_errors=True)
    (tmp_path / "w").mkdir()
    read = read_worms(write_worms(tmp_path / "w", made, layout))
    for ds, x in zip(read, made, strict=True): same(ds, x, layout)


@pytest.mark.parametrize("layout", ["kato2015", "nichols2017", "flavell2023_json",
                                    "flavell2023_h5", "leifer2023"])
def test_odd_labels_are_cleaned_and_reported(truth, layout, tmp_path):
    labels = ["AVA?", "---", "VB01", "RID", "RID", "AVA", "7", "", "AWCON", "AS10"]
    made = truth[0].isel(neuron=range(10))
    place = write_worms(tmp_path, [made], layout, [labels])
    ds, = read_worms(place)
    names = [f"?{i:03d}" for i in range(10)]
    names[2], names[9] = "VB1", "AS10"
    assert list(ds.neuron.values) == names
    told = {r["neuron"]: r["reason"] for r in ds.report if "neuron" in r}
    assert set(told) == set(names) - {"AS10"}
    assert told["?000"] == "uncertain in the file"
    assert told["?003"] == "RID is given to neurons 3, 4"
    assert read_worms(place, uncertain=True)[0].neuron.values[0] == "?000"   # AVA? is a class too


@given(st.integers(0, 10**6), st.integers(20, 60))
def test_filled_gaps_are_causal(seed, T):
    "From the first frame on, whether gaps begin there or later."
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((T, 5))
    x[rng.random((T, 5)) < 0.03] = np.nan
    x[:T // 20, rng.random(5) < 0.3] = np.nan
    a, keep, missing = fill_gaps(x)
    assert np.isfinite(a).all() and a.shape[1] == keep.sum()
    assert list(keep) == [np.isnan(v).sum() <= 0.05 * T for v in x.T]
    start = T - len(a)
    seen = np.isfinite(x[:, keep]).cumsum(0) > 0
    assert start == (0 if not keep.any() else seen.all(1).argmax())    # not a frame more
    np.testing.assert_array_equal(missing[keep], np.isnan(x[start:, keep]).sum(0))
    cut = int(rng.integers(start + 1, T))
    later = x.copy()
    later[cut:] += 1
    np.testing.assert_array_equal(a[:cut - start], fill_gaps(later)[0][:cut - start])
    good = np.isfinite(x[start:, keep])
    np.testing.assert_array_equal(a[good], x[start:, keep][good])


@pytest.mark.parametrize("layout", [v for v in LAYOUTS if v != "flavell2023_json"])
def test_gaps(truth, layout, tmp_path):
    "Long ones drop a neuron, short ones hold the last value, those at the start take frames off."
    made = truth[0].copy(deep=True)
    late, held, lost = np.flatnonzero(made.labelled.values)[:3]
    name, other, gone = (str(made.neuron.values[i]) for i in (late, held, lost))
    made.trace.values[:6, late] = np.nan
    made.trace.values[2, held] = np.nan      # within the frames that are left out
    made.trace.values[5:8, held] = np.nan    # reaches past them: held from before
    made.trace.values[30:33, held] = np.nan
    made.trace.values[20:60, lost] = np.nan
    ds, = read_worms(write_worms(tmp_path, [made], layout))
    want = expected(made, layout).isel(time=slice(6, None))
    assert gone not in ds.neuron.values
    np.testing.assert_array_equal(ds.time, want.time)
    np.testing.assert_array_equal(ds.trace.sel(neuron=name), made.trace.values[6:, late])
    x = ds.trace.sel(neuron=other).values
    assert (x[:2] == made.trace.values[4, held]).all() and (x[24:27] == x[23]).all()
    if "state" in want: assert list(state_names(ds)) == list(state_names(want))
    said = {a: [r for r in ds.report if r.get("action") == a]
            for a in ("frames dropped", "filled", "dropped")}
    assert [r["reason"][:11] for r in said["frames dropped"]] == ["the first 6"]
    assert name in said["frames dropped"][0]["reason"]
    assert [r["neuron"] for r in said["filled"]] == [other]
    assert [r["neuron"] for r in said["dropped"]] == [gone]


# ---- one source, its own ways
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("layout", list(ZIMMER))
def test_zimmer_either_way_round_under_any_file_name(truth, layout, turned, tmp_path):
    path = write_zimmer(tmp_path / "download.bin", truth, layout, turned=turned)
    for ds, made in zip(read_worms(path), truth, strict=True): same(ds, made, layout)


def test_texts_written_alike_and_otherwise(tmp_path, T=80, N=40):
    "Names read at once are the names read one by one, whatever stands between them."
    rng = np.random.default_rng(T)
    labels = [str(n) for n in rng.choice(NEURONS, N, replace=False)]
    labels[3], labels[7], labels[11], labels[12] = "", ["AVAL", "AVAR"], "∆ß", "x" * 300
    made = traces(rng.standard_normal((T, N)), [f"?{i:03d}" for i in range(N)], np.arange(T) / 3,
                  subject="w", source="simulated")
    path = write_zimmer(tmp_path / "a.mat", [made], "kato2015", [labels])
    with h5py.File(path, "a") as f:
        cells = f[f["WT_NoStim/NeuronNames"][0, 0]]
        for i, more in ((20, {"chunks": (2, 1), "compression": 4}), (21, {})):
            text = np.frombuffer("RIS".encode("utf-16-le"), "<u2")[:, None]
            f.create_dataset(f"x{i}", data=text, track_times=True, **more)
            cells[i] = f[f"x{i}"].ref
        f["number"] = 7.0
        cells[22] = f["number"].ref
    with Mat73(path) as m:
        read = m["WT_NoStim/NeuronNames"][0]
        cells = m.f[m.f["WT_NoStim/NeuronNames"][0, 0]].id
        assert read == [m.value(m.open(r)) for r in m.cells(cells)]
    assert read == [*labels[:20], "RIS", "RIS", 7.0, *labels[23:]]


def test_a_damaged_chunk_is_told(tmp_path):
    x = np.random.default_rng(0).standard_normal((900, 60))
    made = traces(x, [f"?{i:03d}" for i in range(60)], np.arange(900) / 3, subject="w",
                  source="simulated")
    path = write_zimmer(tmp_path / "a.mat", [made], "uzel2022")
    with h5py.File(path) as f:
        d = f[f["Uzel_WT/traces"][0, 0]]
        raw = d.id.read_direct_chunk((0, 0))[1]
    content = path.read_bytes()
    path.write_bytes(content.replace(raw, raw[:200] + bytes(len(raw) - 200)))
    with pytest.raises(RecordingError, match="the file is damaged"): read_worms(path)


def test_zimmer_single_worm_without_cells_and_names_of_stim_states(truth, tmp_path):
    "A struct of one worm may hold its matrices directly; states are named in the file."
    with h5py.File(write_zimmer(tmp_path / "a.mat", [traces(
            np.ones((30, 2)), ["AVAL", "RID"], np.arange(30) / 3, subject="w",
            source="simulated")], "uzel2022"), "a") as f:
        g = f["Uzel_WT"]
        for k in list(g):
            inner = g[k][0, 0]
            del g[k]
            g[k] = f[inner]
    ds, = read_worms(tmp_path / "a.mat")
    assert list(ds.neuron.values) == ["AVAL", "RID"] and ds.sizes["time"] == 30
    path = write_zimmer(tmp_path / "a.mat", truth, "kato2015_stim")
    assert set(state_names(read_worms(path)[0])) == {"forward", "reversal", "turn"}
    with h5py.File(path, "a") as f: del f["WT_Stim/StatesKey"]
    assert set(state_names(read_worms(path)[0])) == {"state1", "state2", "state3"}


def test_yemini_neurons_not_seen_are_absent_and_flavell_labels_are_their_worms(truth, tmp_path):
    few = [truth[0].isel(neuron=truth[0].labelled.values).isel(neuron=slice(0, 4)), truth[1]]
    read = read_worms(write_yemini(tmp_path / "a.mat", few))
    assert [ds.sizes["neuron"] for ds in read] == [4, 25]
    assert all(r["action"] != "dropped" for ds in read for r in ds.report)
    (folder := tmp_path / "flavell").mkdir()
    for ds in truth: write_flavell_h5(folder / f"{ds.subject}-data.h5", ds)
    write_flavell_labels(folder / "labels.json", truth[:2])
    read = read_worms(folder)
    assert [int(ds.labelled.sum()) for ds in read] == [25, 25, 0]
    with pytest.raises(RecordingError, match="no reader knows this layout"):
        read_worms(folder / "labels.json")


def test_leifer_members_in_any_order(truth, tmp_path):
    import tarfile
    folder = write_leifer(tmp_path / "loose", truth)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for p in sorted(folder.iterdir(), key=lambda p: p.name[::-1]): tar.add(p, f"x/y/{p.name}")
        (tmp_path / "README.md").write_text("hello")
        tar.add(tmp_path / "README.md", "x/README.md")
    for ds, made in zip(read_worms(tmp_path / "a.tar.gz"), truth, strict=True):
        same(ds, made, "leifer2023")


def test_folders_of_many_sources(truth, tmp_path):
    for layout in ("kato2015", "leifer2023_folder", "flavell2023_h5"):
        (tmp_path / layout).mkdir()
        write_worms(tmp_path / layout, truth, layout)
    (tmp_path / "notes.txt").write_text("hello")
    with h5py.File(tmp_path / "other.h5", "w") as f: f["x"] = [1]
    assert [ds.source for ds in read_worms(tmp_path)] == [
        *["flavell2023"] * 3, *["kato2015"] * 3, *["leifer2023"] * 3]


# ---- what is refused
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_cut_short(truth, layout, share, tmp_path):
    place = write_worms(tmp_path / "w", truth, layout)
    path = place if place.is_file() else sorted(place.iterdir())[0]
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * share)])
    target = place if layout == "leifer2023_folder" else path
    try: read = read_worms(target)
    except RecordingError as e:
        assert str(e).startswith(str(target)) and "\n" not in str(e), str(e)
    else: pytest.fail(f"read {len(read)} worms of a file cut at {share}")


@pytest.mark.parametrize("change, words", [
    (dict(trace_array=[["a"] * 3] * 2), "the file is damaged, or not"),
    (dict(labeled=[1, 2]), "the file is damaged"),
    (dict(timestamp_confocal=[0.0] * 270), "frame 1: time does not increase")])
def test_odd_json_is_refused(truth, tmp_path, change, words):
    path = write_flavell_json(tmp_path / "bad.file", truth[0])
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordingError) as e: read_worms(path)
    assert words in str(e.value) and str(e.value).startswith(str(path)), str(e.value)
    assert "\n" not in str(e.value)


# ---- the real files
def test_the_real_flavell_worms(mirror):
    if not (mirror / "flavell2023").is_dir(): pytest.skip("needs flavell2023/ in the mirror")
    flavell = {ds.file: ds for ds in read_worms(mirror / "flavell2023")}
    found = {k: (ds.sizes["time"], ds.sizes["neuron"]) for k, ds in flavell.items()}
    assert len(found) == 6 and found["2022-08-02-01.json"] == (1600, 98)
    assert found["2022-07-26-31-data.h5"] == (800, 146)
    assert not flavell["2022-01-16-01-data.h5"].labelled.any()
    assert flavell["2022-08-02-01.json"].labelled.sum() == 98
    for ds in flavell.values():
        check(ds)
        assert set(ds.neuron.values[ds.labelled.values]) <= set(NEURONS)
        assert 1.3 < ds.sampling_rate < 1.8 and float(ds.time[0]) == 0
    name = "2022-07-27-45-data.h5"
    ds, uid = flavell[name], name.removesuffix("-data.h5")
    labels = json.loads((mirror / "flavell2023" / "neuropal_labels.json").read_bytes())[uid][0]
    with h5py.File(mirror / "flavell2023" / name) as f:
        np.testing.assert_array_equal(ds.trace.values, f["gcamp/trace_array"][()])
        np.testing.assert_array_equal(ds.velocity.values, f["behavior/velocity"][()])
    told = {r["neuron"] for r in ds.report if "neuron" in r}
    for column, entry in labels.items():
        got = str(ds.neuron.values[int(column) - 1])
        assert got == entry["label"] or got in told, (column, entry["label"], got)
    assert {str(i + 1) for i in np.flatnonzero(ds.labelled.values)} <= set(labels)
