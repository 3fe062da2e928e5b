"Splits and data sets of autolfads; the public Lorenz file where there is one."
import numpy as np
import pytest
from hypothesis import given, strategies as st

from neurocompanion.autolfads.data import (
    Pair, bounds, chaotic, from_arrays, from_recording, lorenz, poisson_nll, split)
from neurocompanion.core import ParameterError, RecordingError
from neurocompanion.recordings.worm.simulate import worms
from neurocompanion.recordings.spikes.reader import read_dad
from neurocompanion.recordings.spikes.hdf5 import read_nlb
from neurocompanion.recordings.spikes.counts import merge
from neurocompanion.recordings.standard import open_recording, save, spikes


@given(st.integers(20, 200), st.floats(0.1, 0.5), st.integers(0, 5),
       st.sampled_from(["random", "blocks", "repeats"]))
def test_halves_are_disjoint_and_whole(n, valid, seed, how):
    pair = split(n, valid, how, condition=np.arange(n) % 4, seed=seed)
    both = np.sort(np.concatenate(pair))
    assert (both == np.arange(n)).all()
    assert abs(len(pair.valid) - valid * n) <= (3 if how in ("random", "blocks") else n / 4)


def test_a_gap_leaves_neighbours_of_blocks_out():
    pair, apart = (split(1321, how="blocks", gap=gap, seed=3) for gap in (0, 1))
    assert (apart.valid == pair.valid).all() and len(apart.train) < len(pair.train)
    assert np.abs(apart.train[:, None] - apart.valid).min() == 2


def test_the_synthetic_data_set_has_the_sizes_of_the_paper():
    d = chaotic(400, 10, steps=5)
    assert d.train.shape == (3200, 5, 50) and d.valid.shape == (800, 5, 50)
    assert (np.bincount(d.condition.valid) == 2).all()
    assert d.train.dtype == d.truth.train.dtype == np.float32
    assert 0 <= d.truth.train.min() and d.truth.train.max() == 30


def test_lorenz_is_the_public_file_where_it_is_and_training_trials_of_the_arm_are_split(mirror):
    d = lorenz()
    assert d.name == "Lorenz" and d.train.shape == (640, 100, 60) and len(d.valid) == 160
    found = bounds(d)
    assert found["true"] == pytest.approx(0.0775, abs=1e-4)          # the public numbers
    assert found["null"] == pytest.approx(0.0896, abs=1e-4)
    assert lorenz("simulated").name == "Lorenz, simulated"
    again = lorenz(mirror / "lorenz_synthetic" / "lfads_lorenz.h5")
    assert (again.train == d.train).all() and (again.truth.valid == d.truth.valid).all()
    ds = read_dad(mirror / "macaque_small" / "DAD" / "chewie_demo.mat")[0]
    own = ds["split"].values.astype(str)
    d = from_recording(ds)                                           # of the arm
    assert set(own) == {"train", "test"} and len(d.valid) == round(0.2 * (own == "train").sum())
    assert (own[np.concatenate(d.rows)] == "train").all()


def test_lorenz_without_the_file_is_simulated_but_a_missing_one_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("NEUROCOMPANION_MIRROR", raising=False)
    monkeypatch.setenv("NEUROCOMPANION_CACHE", str(tmp_path))
    assert lorenz().name == "Lorenz, simulated"
    with pytest.raises(ParameterError, match="nothing.h5"): lorenz(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(RecordingError, match="text.h5"): lorenz(tmp_path / "text.h5")


def recording(**more):
    rng = np.random.default_rng(0)
    return spikes(rng.poisson(0.2, (30, 12, 5)), bin_size=0.02, subject="s", source="made up",
                  unit=list("abcde"), **more)


def test_a_recording_comes_back_from_its_file_as_the_same_data(tmp_path):
    ds = recording(trial_info={"condition": np.arange(30) % 3},
                   behaviour={"hand": (("trial", "time", "axis"), np.ones((30, 12, 2)))})
    d = from_recording(ds, external="hand", how="repeats", seed=1)
    save(ds, tmp_path / "a.nc")
    e = from_recording(open_recording(tmp_path / "a.nc"), external=["hand"], how="repeats",
                       seed=1)
    for a, b in ((d.train, e.train), (d.external.valid, e.external.valid)): assert (a == b).all()
    assert d.sizes == dict(neurons=5, steps=12, encoded=5, read_steps=12, external=2)
    assert d.units == tuple("abcde") and len(set(d.condition.valid)) == 3


def test_a_recording_without_trials_is_chopped_can_be_merged_and_a_constant_trace_is_named():
    rng = np.random.default_rng(0)
    x = rng.poisson(0.5, (400, 4))
    ds = spikes(x, bin_size=0.01, subject="s", source="made up")
    d = from_recording(ds, length=60, overlap=20)
    assert d.train.shape[1:] == (60, 4) and len(d.train) + len(d.valid) == 9
    chops = np.empty((9, 60, 4))
    chops[d.rows.train], chops[d.rows.valid] = d.train, d.valid
    assert np.allclose(merge(chops, 20), x[:9 * 40 + 20])
    assert (np.diff(d.rows.valid) == 1).all() and len(d.rows.valid) % 3 == 0
    ds = worms(1, seed=0, duration=200, frame_rate=3)[0].copy(deep=True)
    ds["trace"][:, 7] = 1.0
    with pytest.raises(RecordingError, match="constant in training") as e:
        from_recording(ds, length=50, overlap=10)
    assert str(ds["neuron"].values[7]) in str(e.value)


def test_test_trials_of_a_benchmark_are_left_out_even_where_they_are_not_numbers():
    x = np.random.default_rng(0).poisson(0.2, (10, 8, 4)).astype(np.float32)
    x[8:, :, 2:] = np.nan
    ds = recording().isel(trial=slice(0, 10), time=slice(0, 8), unit=slice(0, 4)).assign(
        spikes=(("trial", "time", "unit"), x),
        split=("trial", ["train"] * 6 + ["val"] * 2 + ["test"] * 2),
        forward=("time", np.arange(8) >= 6))
    ds = ds.assign_coords(heldout=("unit", [False, False, True, True]))
    d = from_recording(ds)
    assert d.rows.valid.tolist() == [6, 7] and d.withheld == 2 and d.forward == 2
    assert d.part().x.shape == (6, 6, 2) and d.part().y.shape == (6, 8, 4)


def test_training_trials_and_steps_of_the_benchmark_are_split_where_none_validate(benchmark):
    paths, x = benchmark()
    ds, = read_nlb(paths)
    d = from_recording(ds, seed=1)
    assert sorted(np.r_[d.rows.train, d.rows.valid]) == list(range(22)) and len(d.rows.valid) == 4
    assert d.sizes == dict(neurons=8, steps=30, encoded=6, read_steps=24)
    assert (d.valid == x[d.rows.valid]).all()
    note, = d.report
    assert "8 eval, 22 train" in note["reason"] and "4 of 22" in note["trial"]
    assert (from_recording(ds, seed=1).rows.valid == d.rows.valid).all()
    assert (from_recording(ds, seed=2).rows.valid != d.rows.valid).any()
    assert len(from_recording(ds, valid=0.5).valid) == 11
    own = ds.assign(split=("trial", ["train"] * 18 + ["val"] * 4 + ["eval"] * 8))
    d = from_recording(own)
    assert d.rows.valid.tolist() == [18, 19, 20, 21] and d.report == ()
    paths, x = benchmark(forward=False, target=True)      # steps that eval trials alone show
    ds, = read_nlb(paths)
    assert ds.sizes["time"] == 30
    d = from_recording(ds)
    assert d.sizes == dict(neurons=8, steps=24, encoded=6, read_steps=24)
    assert (d.train == x[d.rows.train, :24]).all()


@pytest.mark.parametrize("labels, how, words", [
    (["train"] * 20 + ["test"] * 10, dict(how="given"), "no validation trials"),
    (["val"] * 20 + ["test"] * 10, {}, "no training trials.*found 10 test, 20 val"),
    (["test"] * 30, {}, "no training trials"), (["a", "b"] * 15, {}, "no training trials"),
    (["train"] * 20 + ["valid"] * 10, dict(trials=range(5)), "no validation trials.*5 in use"),
    (["train"] * 20 + ["valid"] * 10, dict(trials=range(20, 25)), "no training trials.*5 in use")])
def test_a_split_with_an_empty_half_is_refused(labels, how, words):
    with pytest.raises(RecordingError, match=words):
        from_recording(recording(trial_info={"split": labels}), **how)


def test_choosing_trials_and_units_keeps_count_of_them_and_copies_nothing():
    d = from_recording(recording(trial_info={"split": ["all"] * 30}))   # it splits nothing: none
    assert len(d.train) == 24 and len(d.valid) == 6 and d.report == ()
    assert type(d.train) is np.ndarray and np.shares_memory(d.part().x, d.train)
    ds = recording()
    d = from_recording(ds, trials=[20, 3, 7, 9, 11, 28], units=["d", "a"], seed=2)
    x = ds["spikes"].values
    assert (d.train == x[d.rows.train][..., [3, 0]]).all()
    assert set(d.rows.train) | set(d.rows.valid) == {20, 3, 7, 9, 11, 28}


def test_bounds():
    from scipy.stats import poisson
    rng = np.random.default_rng(1)
    rate, y = rng.gamma(2, 10, (4, 6, 3)), rng.poisson(0.3, (4, 6, 3))
    assert poisson_nll(rate, y, 0.01) == pytest.approx(-poisson.logpmf(y, rate * 0.01).mean())
    silent = np.zeros((10, 5, 2))
    silent[..., 0] = 1
    found = bounds(from_arrays(silent, split(10), 0.01))
    assert np.isfinite(found["null"]) and list(found) == ["null"]


@pytest.mark.parametrize("call, words", [
    (lambda: split(1), "trials is out of range"),
    (lambda: split(10, how="repeats", condition=[0] * 9), "do not fit the trials"),
    (lambda: split(5, how="repeats", condition=range(5)), "one half of the split is empty"),
    (lambda: from_recording(recording(), length=5), "this recording has trials"),
    (lambda: from_recording(recording(), external="hand"), "there is no such variable"),
    (lambda: from_recording(recording(), trials=[40]), "there is no such trial"),
    (lambda: from_arrays(np.zeros((3, 4, 0)), Pair([0], [1]), 0.1), "is empty"),
    (lambda: from_arrays(np.full((3, 4, 1), "a"), Pair([0], [1]), 0.1), "must be numbers"),
    (lambda: from_arrays(np.zeros((3, 4, 1)), Pair([0], []), 0.1), "one half of the split"),
    (lambda: from_arrays(np.zeros((3, 4, 1)), Pair([0], [1]), -0.1), "bin_size is out of range"),
    (lambda: from_arrays(np.zeros((3, 4, 1)), Pair([0], [1]), 0.1, kind="lfp"), "no such kind")])
def test_bad_input_is_named(call, words):
    with pytest.raises((ParameterError, RecordingError), match=words): call()
