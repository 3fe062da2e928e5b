"The data of the graph-network paper: real worms, honest scaling, folds, and readers."
import warnings

import h5py
import numpy as np
import pytest

from neurocompanion.core import ParameterError, RecordingError
from neurocompanion.recordings.worm.simulate_pool import write_pool
from neurocompanion.recordings.read import read as read_worms
from neurocompanion.recordings.worm.writer import write_zimmer
from neurocompanion.worm_gnn.data import (
    CHUNK, SHARED_3, SHARED_15, derivative, load_flavell, load_worms, neuron_table, scaled,
    simulated_worms, split)


@pytest.fixture(scope="module")
def made(): return simulated_worms(2, minutes=3, states=7)


def test_the_five_worms_of_the_paper(mirror):
    found = load_worms(mirror / "kato2015" / "WT_NoStim.mat", states=7)
    assert [len(w.y) for w in found] == [3137, 3134, 3059, 3311, 3021]
    for w in found:
        assert w.x.shape == (len(w.y), 15, 2) and w.x.dtype == np.float32 and w.y.dtype == np.int64
        assert w.neurons == SHARED_15 and w.source == "kato2015"
        assert w.x.min(0).max() == 0 and w.x.max(0).min() == 1     # each neuron and feature
    share = np.mean([np.bincount(w.y + 1, minlength=8) / len(w.y) for w in found], 0)
    names = ["nostate", *found[0].state_names]
    expected = {"nostate": .011, "fwd": .093, "slow": .331, "dt": .051, "vt": .099, "rev1": .034,
                "rev2": .040, "revsus": .340}
    assert dict(zip(names, share)) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("scaling", ["train", "standardised"])
@pytest.mark.parametrize("how", [{}, {"shuffled": False}, {"shuffled": False, "gap": 3}])
def test_nothing_outside_the_training_steps_reaches_the_training_input(made, scaling, how):
    rng = np.random.default_rng(0)
    for w in made:
        train = split(len(w.y) // CHUNK, **how)[3].on(len(w.y)).train
        trace = w.trace.copy()
        trace[~train] = rng.normal(0, 50, trace[~train].shape)
        changed = w._replace(trace=trace, slope=derivative(trace, w.time))
        before, after = (scaled(v, scaling, train).x for v in (w, changed))
        assert np.array_equal(before[train], after[train])
        if scaling == "train": assert before[train].min() == 0 and before[train].max() == 1
        else: assert abs(before[train].astype(float).std(0) - 1).max() < 1e-5
        assert not np.array_equal(before[~train], after[~train])
        assert not np.array_equal(scaled(w).x[train], scaled(changed).x[train])   # the paper's


def test_constant_neurons_are_zero_and_warn_of_nothing(made):
    w = made[0]
    for value in (0.0, 0.1, -3.3):
        trace = w.trace.copy()
        trace[:, 4] = value
        still = w._replace(trace=trace, slope=derivative(trace, w.time))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for how in (("whole",), ("train", w.y >= 0), ("standardised",)):
                assert (scaled(still, *how).x[:, 4] == 0).all()


def test_relabelling_states_changes_codes_only_by_name(tmp_path, made):
    "The order of states in a file is of no account."
    ds = read_worms(write_zimmer(tmp_path / "WT.mat", [_recording(made[0])]))[0]
    names = ds.state.attrs["flag_meanings"].split()
    turned = ds.copy(deep=True)
    turned["state"].values[:] = len(names) - 1 - ds.state.values
    turned["state"].attrs["flag_meanings"] = " ".join(names[::-1])
    for i, d in enumerate((ds, turned)): write_zimmer(tmp_path / f"{i}.mat", [d])
    a, b = (load_worms(tmp_path / f"{i}.mat", states=7)[0].y for i in range(2))
    assert np.array_equal(a, b) and len(set(a)) == 8


def _recording(w):
    from neurocompanion.recordings.standard import traces
    names = [*w.state_names, "nostate"]
    return traces(w.trace, w.neurons, w.time, subject="back", source="test",
                  state=np.where(w.y < 0, len(names) - 1, w.y).astype(np.int8), states=names)


def test_a_published_derivative_is_used(tmp_path, made):
    path = write_zimmer(tmp_path / "WT_NoStim.mat", [_recording(made[0])])
    without = load_worms(path)[0]
    slope = np.random.default_rng(0).standard_normal(made[0].trace.shape)
    with h5py.File(path, "r+") as f:
        d = f.create_dataset("#refs#/slope", data=slope.T)
        f["WT_NoStim"].create_dataset("deltaFOverF_deriv", data=np.array([[d.ref]]),
                                      dtype=h5py.ref_dtype)
    with_it = load_worms(path)[0]
    assert np.array_equal(with_it.slope, slope) and np.array_equal(with_it.trace, without.trace)
    assert np.allclose(without.slope, derivative(without.trace, without.time))
    train = np.arange(len(slope)) < 100          # the authors looked ahead: set aside
    assert np.array_equal(scaled(with_it, "train", train).x, scaled(without, "train", train).x)


@pytest.mark.parametrize("n, k", [(392, 10), (10, 10), (7, 3)])
@pytest.mark.parametrize("shuffled", [True, False])
def test_folds_deal_every_chunk_once(n, k, shuffled):
    dealt = split(n, k, shuffled)
    assert len(dealt) == k
    for part in ("test", "validation"):
        assert (sum(getattr(f, part).astype(int) for f in dealt) == 1).all()
    for f in dealt: assert (sum(m.astype(int) for m in f) == 1).all() and f.train.any()
    sizes = [f.test.sum() for f in dealt]
    assert max(sizes) - min(sizes) <= 1


def test_folds_are_the_seeds_and_masks_of_steps_those_of_chunks():
    a, b, c = (split(100, seed=s) for s in ((0, 1), (0, 1), (0, 2)))
    assert all(np.array_equal(x, y) for f, g in zip(a, b) for x, y in zip(f, g))
    assert any(not np.array_equal(f.test, g.test) for f, g in zip(a, c))
    for f in split(12, 3):
        on = f.on(12 * CHUNK + 5)
        for chunk, step in zip(f, on):
            assert len(step) == 101 and not step[96:].any()
            assert (step[:96].reshape(12, 8) == chunk[:, None]).all()


@pytest.mark.parametrize("gap", [1, 2, 5])
def test_blocks_keep_their_distance(gap):
    for f in split(100, shuffled=False, gap=gap):
        train, held = np.flatnonzero(f.train), np.flatnonzero(f.test | f.validation)
        assert np.abs(train[:, None] - held).min() == gap + 1
        assert np.ptp(np.flatnonzero(f.test)) == f.test.sum() - 1
    for wrong in (-1, 6, 1.5):
        with pytest.raises(ParameterError, match="less than a fold"): split(20, 5, False, gap=wrong)


def test_nichols_from_the_pool(tmp_path):
    "Files of the layout, one with quiescence, hold the three neurons and say they are simulated."
    write_pool(tmp_path, sources="nichols2017", worms=0.1, minutes=1, workers=1)
    paths = sorted((tmp_path / "nichols2017").glob("*_prelet.mat"))
    found = load_worms(paths, SHARED_3, 3)
    assert len(paths) == 2 and len(found) == 2
    assert {w.source for w in found} == {"simulated"} and found[0].neurons == SHARED_3
    assert set(np.unique(found[0].y)) <= {-1, 0, 1, 2}
    with pytest.raises(RecordingError, match="`turn` split up.*states=3"):
        load_worms(paths[0], SHARED_3, 4)
    with pytest.raises(RecordingError, match="states=3 or 2"): load_worms(paths[0], SHARED_3, 7)


def test_simulated_worms_can_be_told_apart_and_transfer():
    "A model of the simulated worms must have something to learn, and another lab's to carry it to."
    from sklearn.svm import SVC
    train = simulated_worms(3, neurons=SHARED_3, minutes=5, scaling="standardised")
    test = simulated_worms(2, 0, SHARED_3, nichols=True, minutes=5, scaling="standardised")
    def known(ws): return (np.concatenate([w.x[w.y >= 0].reshape(-1, 6) for w in ws]),
                           np.concatenate([w.y[w.y >= 0] for w in ws]))
    model = SVC().fit(*known(train))
    assert model.score(*known(test)) > 0.8
    assert {w.source for w in (*train, *test)} == {"simulated"}


def test_simulations_are_their_seed():
    a, b, c = (simulated_worms(1, seed, minutes=1)[0] for seed in (0, 0, 1))
    assert np.array_equal(a.x, b.x) and np.array_equal(a.y, b.y) and not np.array_equal(a.x, c.x)
    names = ("AVAL", "RID")                                    # a generator is read once
    assert simulated_worms(2, 0, (n for n in names), minutes=1)[1].neurons == names


def test_real_flavell_worms(mirror):
    "Velocity gives the laboratory's own reversals back; the neurons that all four have."
    folder = mirror / "flavell2023"
    table = neuron_table(folder)
    assert table["velocity"].sum() == 5 and table.drop(columns="velocity").any(axis=1).sum() == 5
    found = load_flavell(folder)
    assert [w.name for w in found] == ["2022-07-26-31", "2022-07-27-31", "2022-07-27-45",
                                       "2022-08-02-31"]
    assert found[0].neurons == ("AIBL", "AIBR", "AVAL", "AVAR", "AVER", "RID", "RMEL")
    theirs = {ds.subject: ds for ds in read_worms(folder)}
    for w in found:
        assert ((w.y == 1) == (theirs[w.name]["reversal_vec"].values > 0)).mean() > 0.98
    assert len(load_flavell(folder, ["AVAL", "VB02"])) == 3
    assert len(load_flavell()) == 4                            # what is registered
    with pytest.raises(RecordingError, match="no worm can be used.*VB1"):
        load_flavell(folder, ["VB01"])
