"Spike readers: what was written is read; the real files against an independent reading; errors."
import datetime, json

import h5py
import numpy as np
import pytest
import xarray as xr
from scipy.io import loadmat, savemat

from neurocompanion.core import NeurocompanionError, RecordingError, sha256
from neurocompanion.recordings.spikes.simulate import lorenz
from neurocompanion.recordings.read import read as read_spikes
from neurocompanion.recordings.spikes.reader import READERS, read_ibl
from neurocompanion.recordings.spikes.hdf5 import counted, read_lfads, read_nlb
from neurocompanion.recordings.spikes.nwb import read_nwb
from neurocompanion.recordings.spikes.writer import MATLAB, write_ibl, write_matlab, write_nwb
from neurocompanion.recordings.standard import check, open_recording, save


@pytest.fixture(scope="module")
def known():
    return lorenz(5, 6, units=12, steps=40).isel(trial=np.random.default_rng(1).permutation(30))


def whole(ds, path):
    "What holds for every recording that was read."
    check(ds)
    assert len(ds.sha256) == 64 and ds.file and ds.source and ds.subject and ds.licence
    assert all("action" in e and "reason" in e for e in ds.report)
    xr.testing.assert_identical(open_recording(save(ds, path)), ds)


# ---- what was written is read
@pytest.mark.parametrize("layout", MATLAB)
def test_matlab(known, layout, tmp_path):
    path = write_matlab(tmp_path / "a.mat", known, layout)
    ds = read_spikes(path, bin_size=0.01)[0]
    whole(ds, tmp_path / "a.nc")
    assert ds.spikes.values.sum() == known.spikes.values.sum() and ds.bin_size == 0.01
    if layout != "aplysia": assert np.array_equal(ds.spikes.values, known.spikes.values)
    if layout in ("dad", "datahigh"):
        same = known.condition.values[:, None] == known.condition.values
        assert np.array_equal(ds.condition.values[:, None] == ds.condition.values, same)
    if layout in ("datahigh", "neuraltraj"):
        small = known.isel(trial=slice(0, 1), unit=slice(0, 1))
        ds = read_spikes(write_matlab(tmp_path / "small.mat", small, layout))[0]
        assert np.array_equal(ds.spikes.values, small.spikes.values)


def hdf5(path, **fields):
    with h5py.File(path, "w") as f:
        for name, value in fields.items(): f[name] = value
    return path


def test_lfads_truth_factor_odd_fields_and_types_of_counts(tmp_path):
    x = np.random.default_rng(0).poisson(0.3, (8, 20, 5))
    path = hdf5(tmp_path / "a.h5", train_data=x[:6], valid_data=x[6:], conversion_factor=10.0,
                train_truth=np.full((6, 20, 5), 3.0), valid_truth=np.full((2, 20, 5), 3.0),
                train_mask=np.ones(3), train_inds=[5, 4, 3, 2, 1, 0], valid_inds=[7, 6],
                **{"more/stuff": [1]})
    ds = read_lfads(path, bin_size=0.02)[0]
    whole(ds, tmp_path / "a.nc")
    assert np.allclose(ds.rate, 15) and ds.trial.values.tolist() == [5, 4, 3, 2, 1, 0, 7, 6]
    assert {e["variable"] for e in ds.report if e["action"] == "left out"} == {"mask", "more"}
    assert ds.split.values.tolist() == ["train"] * 6 + ["valid"] * 2
    ones = np.ones((6, 20, 5))  # a truth in unknown units is kept apart
    ds = read_lfads(hdf5(tmp_path / "b.h5", train_data=ones, train_truth=-2 * ones))[0]
    assert "rate" not in ds and np.all(ds.truth == -2)
    assert counted(np.array([70_000.0])).dtype == np.uint32
    assert counted(np.array([-1])).dtype.kind == "i"
    assert set(READERS) == {"nwb", "nlb", "lfads", "steinmetz", *MATLAB, "ibl", "csv"}


def test_nlb_parts_of_a_task_and_a_target_without_input(benchmark, tmp_path):
    paths, x = benchmark()
    ds = read_spikes(tmp_path)[0]
    whole(ds, tmp_path.parent / f"{tmp_path.name}.nc")
    assert dict(ds.sizes)["trial"] == 30 and ds.bin_size == 0.005
    assert np.array_equal(ds.spikes.values[:22], x[:22])
    assert np.array_equal(ds.spikes.values[22:, :24, :6], x[22:, :24, :6])
    hidden = np.isnan(ds.spikes.values[22:])
    assert hidden[:, 24:].all() and hidden[..., 6:].all()
    assert np.array_equal(ds.behaviour[:22, :24].values.ravel(), np.arange(22 * 24 * 2.0))
    assert ds.heldout.values.sum() == 2 and ds.forward.values.sum() == 6
    alone = read_nlb(paths[0])[0]
    assert alone.spikes.dtype == np.uint8 and alone.split.values.tolist() == ["train"] * 22
    fields = dict(eval_spikes_heldout=np.ones((4, 10, 3)), eval_behavior=np.ones((4, 5)),
                  train_behavior=np.ones((9, 5)), psth=np.ones((2, 10, 8)))
    ds = read_spikes(hdf5(tmp_path / "target.h5",
                          **{f"dmfc_rsg_20/{k}": v for k, v in fields.items()}))[0]
    assert ds.bin_size == 0.02 and ds.heldout.values.all() and ds.behaviour.dims[0] == "trial"
    assert any(e.get("variable") == "train_behavior" for e in ds.report)


def session(tmp_path, **kw):
    rng = np.random.default_rng(0)
    times = [np.sort(rng.uniform(0, 20, n)) for n in (200, 0, 50)]
    trials = {"start_time": np.arange(5) * 4.0, "stop_time": np.arange(5) * 4.0 + 3.5,
              "go_time": np.arange(5) * 4.0 + 1, "split": list("aabbc"), "ok": [True] * 5}
    t = np.arange(0, 20, 0.01)
    path = write_nwb(tmp_path / "a.nwb", times, trials, {"hand_vel": (t, np.c_[t, -t])}, **kw)
    return times, trials, path


def test_nwb_whole_and_in_windows(tmp_path):
    times, trials, path = session(tmp_path)
    ds = read_spikes(path)[0]
    whole(ds, tmp_path / "a.nc")
    assert int(ds.spikes.sum()) == 250 and ds.unit.values.tolist() == [1011, 1012, 1013]
    assert ds.go_time.dims == ("event",) and ds.split.values.tolist() == list("aabbc")
    cut = read_spikes(path, bin_size=0.01, align="go_time", before=0.2, after=0.3)[0]
    whole(cut, tmp_path / "b.nc")
    for i, go in enumerate(trials["go_time"]):
        want = [np.sum((t >= go - 0.2 - 1e-8) & (t < go + 0.3 - 1e-8)) for t in times]
        assert cut.spikes.values[i].sum(0).tolist() == want
    assert np.allclose(cut.hand_vel[2, :, 0], 9 + cut.time, atol=1e-4)
    assert "hand_vel" not in read_nwb(path, behaviour=False)[0]


def test_nwb_trials_that_were_not_observed(tmp_path):
    _, _, path = session(tmp_path, observed=[[0.0, 4.0], [8.0, 20.0]])
    ds = read_nwb(path, align="go_time", before=0.2, after=0.3)[0]
    assert ds.trial.values.tolist() == [0, 2, 3, 4]
    assert any(e.get("trial") == "1" and "nothing was observed" in e["reason"] for e in ds.report)
    assert np.isnan(read_nwb(path, bin_size=0.1)[0].spikes.values).all(1).sum() == 40


def test_nwb_of_pynwb(tmp_path):
    import pynwb
    start = datetime.datetime.fromisoformat("2020-01-01T00:00:00+00:00")
    f = pynwb.NWBFile("a session", "one", start)
    f.subject = pynwb.file.Subject(subject_id="Indy", species="Macaca mulatta")
    f.add_unit_column("heldout", "whether it is held out")
    f.add_unit_column("quality", "how good")
    times = [np.array([0.1, 0.2, 1.25]), np.array([0.7]), np.array([1.9, 2.95])]
    for i, t in enumerate(times):
        f.add_unit(id=10 + i, spike_times=t, obs_intervals=[[0.0, 1.5], [1.8, 3.0]],
                   heldout=i == 2, quality="good")
    f.add_trial_column("go_time", "when to go")
    f.add_trial_column("split", "train or val")
    for k, s in enumerate(("train", "val")):
        f.add_trial(start_time=float(k), stop_time=k + 1.0, go_time=k + 0.5, split=s)
    m = f.create_processing_module("behavior", "moves")
    m.add(pynwb.TimeSeries(name="hand_vel", data=np.arange(3000.0)[:, None] * [1, 2], unit="m/s",
                           starting_time=0.0, rate=1000.0, conversion=0.5))
    position = pynwb.behavior.Position(name="Position")
    position.create_spatial_series(name="hand", data=np.zeros((3000, 2)), reference_frame="table",
                                   timestamps=np.arange(3000) * 0.001)
    m.add(position)
    with pynwb.NWBHDF5IO(str(tmp_path / "p.nwb"), "w") as io: io.write(f)
    ds = read_spikes(tmp_path / "p.nwb", bin_size=0.05)[0]
    whole(ds, tmp_path / "a.nc")
    assert ds.subject == "Indy" and ds.heldout.values.tolist() == [False, False, True]
    assert np.nansum(ds.spikes) == 6 and np.isnan(ds.spikes.values).all(1).sum() == 6
    for u, t in enumerate(times):
        assert np.flatnonzero(np.nan_to_num(ds.spikes.values[:, u])).tolist() == (
            t / 0.05 + 1e-6).astype(int).tolist()
    assert np.allclose(ds.hand_vel[0], [12.25, 24.5]) and "Position_hand" in ds
    cut = read_spikes(tmp_path / "p.nwb", align="go_time", before=0.1, after=0.3)[0]
    assert cut.split.values.tolist() == ["train", "val"] and cut.quality.values[0] == "good"
    assert np.nansum(cut.spikes.values, (1, 2)).tolist() == [1, 0]
    assert np.isnan(cut.spikes.values[1]).all(1).tolist() == [False] * 20 + [True] * 60


def test_ibl_sessions_splits_and_odd_columns(known, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    for split, rows in (("train", slice(0, 20)), ("val", slice(20, 24)), ("test", slice(24, 30))):
        write_ibl(tmp_path / f"{split}-00000-of-00001.parquet", known.isel(trial=rows),
                  behaviour=["condition"])
    write_ibl(tmp_path / "train-other.parquet", known.isel(unit=slice(0, 3)), eid="other")
    by_eid = {ds.eid: ds for ds in read_spikes(tmp_path)}
    assert len(by_eid) == 2 and by_eid["other"].sizes["unit"] == 3
    ds = next(v for k, v in by_eid.items() if k != "other")
    rank = {"train": slice(0, 20), "val": slice(20, 24), "test": slice(24, 30)}
    for split, rows in rank.items():
        assert np.array_equal(ds.spikes.values[ds.split.values == split], known.spikes.values[rows])
    table = pq.read_table(tmp_path / "train-other.parquet").to_pydict()
    table["choice"] = [[float(i % 2)] for i in range(30)]
    table["wheel-speed"] = [list(np.arange(40.0) + i) for i in range(30)]
    table["ragged"] = [[0] * (i % 3) for i in range(30)]
    for name, writer in (("s.arrow", pa.ipc.new_stream), ("f.arrow", pa.ipc.new_file)):
        t = pa.table(table)
        with pa.OSFile(str(tmp_path / name), "wb") as f, writer(f, t.schema) as w: w.write_table(t)
        ds = read_spikes(tmp_path / name)[0]
        whole(ds, tmp_path / "a.nc")
        assert ds.choice.values.tolist() == [i % 2 for i in range(30)]
        assert np.array_equal(ds["wheel-speed"].values[3], np.arange(40.0) + 3)
        assert any(e.get("variable") == "ragged" for e in ds.report)
    shape = table.pop("spikes_sparse_shape")
    for more, says in [({}, "column `spikes_sparse_shape` is missing"),
                       ({"spikes_sparse_shape": [[4, 3]] * len(shape)},
                        "odd.parquet, row 0: its spikes are no sparse matrix")]:
        pq.write_table(pa.table(table | more), tmp_path / "odd.parquet")
        with pytest.raises(RecordingError, match=says): read_ibl(tmp_path / "odd.parquet")


# ---- what is refused
LONG = dict(times=[[0.0, 1e9]], trials={"start_time": [0.0], "stop_time": [1.0]})
WRITE = dict(mat=savemat, csv=lambda path, text: path.write_text(text),
             h5=lambda path, fields: hdf5(path, **fields),
             nwb=lambda path, fields: write_nwb(path, **fields))


@pytest.mark.parametrize("name, content, says", [
    ("a.mat", {"x": np.ones(3)}, "there is neither a matrix nor spike times in it"),
    ("b.mat", {"dat": {"spikes": "none"}}, "b.mat, trial 0"),
    ("c.mat", {"spks": np.array([[0.0, 1.0]])}, "c.mat, spike 0"),
    ("d.mat", {"spks": np.zeros((0, 2))}, "d.mat"),
    ("e.csv", "timestamp,unit_1\n0,1\n0.1,x\n", "the table has a field"),
    ("f.h5", {"train_data": np.ones((6, 20, 5)), "valid_data": np.ones((2, 20, 4))},
     "the splits differ in time or neurons"),
    ("g.h5", {"train_data": np.ones((6, 20))}, "g.h5, train: .*expected trial × time × neuron"),
    ("h.nwb", LONG, "too long for memory.*align")])
def test_every_error_names_the_file(name, content, says, tmp_path):
    WRITE[name.split(".")[1]](tmp_path / name, content)
    with pytest.raises(NeurocompanionError, match=says) as e: read_spikes(tmp_path / name)
    assert name in str(e.value)


@pytest.mark.parametrize("size", [0, 100, 700, 3000])
def test_cut_files_are_refused_in_one_sentence(known, size, tmp_path):
    made = [write_matlab(tmp_path / f"{k}.mat", known, k) for k in MATLAB]
    made += [write_ibl(tmp_path / "train.parquet", known), session(tmp_path)[2]]
    for path in made:
        content = path.read_bytes()
        if size >= len(content): continue
        path.write_bytes(content[:size])
        with pytest.raises(NeurocompanionError, match=path.name): read_spikes(path)


# ---- the real files, against an independent reading
def struct_of(path, name): return loadmat(path, squeeze_me=True, struct_as_record=False)[name]


def test_real_lorenz(mirror, tmp_path):
    path = mirror / "lorenz_synthetic" / "lfads_lorenz.h5"
    ds = read_spikes(path)[0]
    whole(ds, tmp_path / "a.nc")
    with h5py.File(path) as f:
        for s in ("train", "valid"):
            own = ds.isel(trial=ds.split.values == s)
            assert np.array_equal(own.spikes.values, f[f"{s}_data"][()])
            assert np.allclose(own.rate.values, f[f"{s}_truth"][()])
            assert np.array_equal(own.trial.values, f[f"{s}_inds"][()])
            assert np.array_equal(own.latent.values, f[f"{s}_lowd"][()])
    assert dict(ds.sizes) | {"trial": 800, "time": 100, "unit": 60} == dict(ds.sizes)
    assert np.unique(ds.condition, return_counts=True)[1].tolist() == [40] * 20
    for c in range(20):    # a condition has one true rate
        assert np.ptp(ds.rate.values[ds.condition.values == c], axis=0).max() == 0


def test_real_datahigh(mirror, tmp_path):
    for name, trials, bins in (("ex1_spikecounts", 210, (400, 400)),
                               ("ex2_rawspiketrains", 112, (1018, 1526))):
        path = mirror / "macaque_small" / "DataHigh" / f"{name}.mat"
        ds, D = read_spikes(path)[0], struct_of(path, "D")
        whole(ds, tmp_path / "a.nc")
        assert (ds.sizes["trial"], ds.sizes["unit"], ds.bin_size) == (trials, 61, 0.001)
        assert (int(ds.bins.min()), int(ds.bins.max())) == bins
        for i in (0, 57, trials - 1):
            x = ds.spikes.values[i]
            assert np.array_equal(x[:D[i].data.shape[1]], D[i].data.T)
            assert np.isnan(x[D[i].data.shape[1]:].astype(float)).all()
        assert ds.condition.values.tolist() == [d.condition for d in D]
        assert np.nansum(ds.spikes) == sum(int(d.data.sum()) for d in D)


def test_real_neuraltraj(mirror, tmp_path):
    folder = mirror / "macaque_small" / "NeuralTraj"
    ds, dat = read_spikes(folder / "sample_dat.mat")[0], struct_of(folder / "sample_dat.mat", "dat")
    assert ds.spikes.shape == (56, 400, 53)
    assert ds.trial.values.tolist() == [d.trialId for d in dat]
    path = folder / "sample2_dat.mat"
    ds, dat = read_spikes(path)[0], struct_of(path, "dat")
    whole(ds, tmp_path / "a.nc")
    assert ds.spikes.shape == (140, 520, 45) and ds.trial.values[0] == "Trial12"
    assert len(np.unique(ds.condition)) == 8 and np.all(ds.timeMoveOnset == 0.1)
    for i in (0, 1, 139):
        assert np.array_equal(ds.spikes.values[i], dat[i].spikes.T)
        t = dat[i].cursor_times.astype(float)
        v = ds.cursor_vel.values[i]
        inside = (np.arange(520) + 1 >= t[0]) & (np.arange(520) + 1 <= t[-1])
        assert np.array_equal(np.isfinite(v).all(1), inside)
        assert np.allclose(v[inside, 1], np.interp(np.arange(1, 521)[inside], t,
                                                   dat[i].cursor_vel[:, 1]), atol=1e-5)
    assert np.isnan(ds.cursor_vel.values[:, 10:517]).sum() == 0


def test_real_dad(mirror, tmp_path):
    path = mirror / "macaque_small" / "DAD" / "chewie_demo.mat"
    ds, m = read_spikes(path)[0], loadmat(path)
    whole(ds, tmp_path / "a.nc")
    assert ds.spikes.shape == (96, 31, 71)
    assert (ds.split.values == "train").sum() == 38 and (ds.split.values == "test").sum() == 58
    flat = ds.isel(trial=ds.split.values == "train")
    assert np.array_equal(flat.spikes.values.reshape(-1, 71), m["Ytr"][:1178])
    assert np.allclose(flat.velocity.values.reshape(-1, 2), m["Xtr"][:1178])
    flat = ds.isel(trial=ds.split.values == "test")
    assert np.array_equal(flat.spikes.values.reshape(-1, 71), m["Yte"][20:])
    assert np.array_equal(np.repeat(flat.condition.values, 31), m["Tte"].ravel()[20:])
    assert sorted(e["time"] for e in ds.report if "time" in e) == ["test 0 … 19",
                                                                  "train 1178 … 1199"]
    x = ds.spikes.values.astype(float)       # windows that slide: neighbours share their spikes
    for c in np.unique(ds.condition): x[ds.condition == c] -= x[ds.condition == c].mean(0)
    shared = [(x[:, k:] * x[:, :-k]).mean() / (x**2).mean() for k in (1, 2, 3, 4)]
    assert np.allclose(shared, [0.86, 0.75, 0.64, 0.52], atol=0.02)


def test_real_maze_trial_and_the_folder_at_once(mirror, tmp_path):
    path = mirror / "macaque_small" / "HiSDE" / "trial_748_data.csv"
    ds = read_spikes(path)[0]
    whole(ds, tmp_path / "a.nc")
    head = path.read_text().split("\n", 1)[0].split(",")
    x = np.genfromtxt(path, delimiter=",", skip_header=1, max_rows=200)
    assert ds.spikes.shape == (3236, 182) and ds.bin_size == 0.001
    assert np.array_equal(ds.spikes.values[:200], x[:, 9:])
    assert ds.unit.values.tolist() == [int(k[5:]) for k in head[9:]]
    assert np.allclose(ds.hand_vel.values[:200], x[:, 7:9]) and np.isclose(ds.time[0], 2282.6)
    every = read_spikes(mirror / "macaque_small")
    assert sorted(ds.file for ds in every) == [
        "chewie_demo.mat", "ex1_spikecounts.mat", "ex2_rawspiketrains.mat", "sample2_dat.mat",
        "sample_dat.mat", "trial_748_data.csv"]
    assert all(json.dumps(ds.report) for ds in every)


def test_real_aplysia(mirror, tmp_path):
    folder = mirror / "aplysia_bruno2017"
    units = {}
    for path in sorted(folder.glob("*.mat")):
        ds, s = read_spikes(path, bin_size=0.05)[0], loadmat(path)["spks"]
        want = np.zeros((int(s[:, 1].max() / 0.05) + 1, int(s[:, 0].max())), int)
        np.add.at(want, ((s[:, 1] / 0.05).astype(int), s[:, 0].astype(int) - 1), 1)
        assert np.array_equal(ds.spikes.values, want) and ds.licence == "MIT"
        assert ds.sha256 == sha256(path)
        units.setdefault(path.stem[:-4], set()).add(ds.sizes["unit"])
    assert len(units) == 7 and all(len(v) == 1 for v in units.values())
    assert sorted(next(iter(v)) for v in units.values()) == [94, 104, 105, 121, 136, 151, 160]
    whole(ds, tmp_path / "a.nc")


def test_real_steinmetz(mirror, tmp_path):
    found = {}
    for path in sorted((mirror / "steinmetz2019").glob("*.h5"))[:4]:
        ds = read_spikes(path)[0]
        with h5py.File(path) as f:
            assert np.array_equal(ds.spikes.values, f["spikes"][()])
            assert ds.area.values.tolist() == [a.decode() for a in f["brain_area"][()]]
            for k in ("contrast_left", "contrast_right", "feedback_type"):
                assert np.array_equal(ds[k].values, f[k][()])
            assert ds.subject.startswith(f.attrs["mouse"]) and ds.bin_size == f.attrs["bin_size_s"]
        found[path.stem] = ds.sizes["trial"], ds.sizes["unit"]
    whole(ds, tmp_path / "a.nc")
    assert found["session01"] == (114, 734) and found["session05"] == (254, 1077)
