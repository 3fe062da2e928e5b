"Sessions, pools and what they have in common: each trial once, each session by its name."

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from neurocompanion.core import ParameterError, RecordingError
from neurocompanion.recordings.worm.simulate import worms
from neurocompanion.recordings.spikes.writer import write_ibl, write_matlab
from neurocompanion.recordings.standard import save, spikes
from neurocompanion.sessions.data import fewer, from_recording, identity, split, split_time
from neurocompanion.sessions.pools import (
    USUAL, check_pool, facts, held, hold_out, order, pool, sessions_in, true_distance)
from neurocompanion.sessions.similarity import MEASURES, similarities

names = st.text(min_size=0, max_size=12)


def recording(trials=40, bins=30, units=6, subject="M1", seed=0, **more):
    rng = np.random.default_rng(seed)
    shape = (trials, bins, units) if trials else (bins, units)
    return spikes(rng.poisson(0.3, shape), bin_size=0.02, subject=subject, source="made up", **more)


# ---------------------------------------------------------------- splits
@given(st.integers(3, 400), st.integers(0, 9), names, st.tuples(*[st.floats(0.1, 10)] * 3))
def test_each_trial_is_in_one_part(n, seed, name, parts):
    rows = split(n, seed, parts, name=name)
    assert (np.sort(np.concatenate(rows)) == np.arange(n)).all()
    assert all(len(r) and (np.diff(r) > 0).all() for r in rows)
    assert all((a == b).all() for a, b in zip(rows, split(n, seed, parts, name=name)))
    for r, share in zip(rows, parts):
        assert abs(len(r) - n * share / sum(parts)) <= 2.01


@given(st.integers(3, 300), st.integers(1, 40), st.integers(0, 30), st.integers(1, 5),
       st.integers(0, 9), names)
def test_windows_share_no_bin_and_parts_keep_apart(windows, length, gap, block, seed, name):
    bins = windows * length + 4 * gap
    rows = split_time(bins, length, seed, gap=gap, block=block, name=name)
    first = np.concatenate(rows)
    assert first.min() >= 0 and first.max() + length <= bins and all(len(r) for r in rows)
    label = np.repeat([0, 1, 2], [len(r) for r in rows])[np.argsort(first)]
    step, change = np.diff(np.sort(first)), np.diff(label) != 0
    assert (step[change] == length + gap).all() and (step[~change] == length).all()
    if not gap: assert len(first) == windows           # nothing is lost where nothing must be


# ---------------------------------------------------------------- one recording
def test_a_session_holds_the_counts_of_its_recording():
    ds = recording(unit=list("abcdef"))
    s = from_recording(ds, seed=3)
    x = np.empty(ds.spikes.shape)
    for r, part in zip(s.rows, (s.train, s.valid, s.test)): x[r] = part
    assert (x == ds.spikes.values).all() and s.train.dtype == torch.uint8
    assert s.units == tuple("abcdef") and s.bin_size == 0.02 and s.report == ()
    assert s.facts["trials"] == 40 and s.facts["units"] == 6
    assert s.facts["rate"] == pytest.approx(float(s.train.float().mean()) / 0.02)
    wide = from_recording(ds, seed=3, bin_ms=60)
    assert torch.equal(wide.test, s.test.reshape(4, 10, 3, 6).sum(2))
    part = from_recording(ds, seed=3, window=(0.1, 0.3))
    assert torch.equal(part.test, s.test[:, 5:15])
    left = from_recording(ds, bin_ms=80)
    assert left.train.shape[1] == 7 and "last 2 of 30 bins" in left.report[0]["time"]


def test_the_side_of_a_stimulus_comes_from_its_contrasts():
    left, right = (("trial", np.tile(v, 10)) for v in ([0.0, 1, 0.5, 0.5], [0.0, 0.5, 1, 0.5]))
    ds = recording().assign(contrast_left=left, contrast_right=right)
    side = from_recording(ds).labels["side"]
    assert side[:4].tolist() == [None, "left", "right", None]
    assert "side" not in from_recording(recording().assign(contrast_left=left)).labels


def test_what_the_test_trials_do_changes_nothing_else():
    ds = recording()
    s = from_recording(ds, min_rate=12, units=4)
    other = ds.copy(deep=True)
    other["spikes"][s.rows[2]] = 50 - other["spikes"][s.rows[2]] * 3
    other["spikes"][s.rows[1]] = 0
    t = from_recording(other, min_rate=12, units=4)
    assert torch.equal(s.train, t.train) and s.units == t.units
    assert all((a == b).all() for a, b in zip(s.rows, t.rows))


def test_silent_units_are_dropped_if_asked_and_unequal_trials_cut_to_what_all_hold():
    ds = recording(unit=list("abcdef"))
    ds["spikes"][:, :, 2] = 0
    s = from_recording(ds, min_rate=1)
    assert s.units == tuple("abdef") and s.report[0]["unit"] == "c"
    assert from_recording(ds).units == tuple("abcdef")              # none is dropped unasked
    ds = recording().astype({"spikes": "float32"})
    ds["spikes"][7, 24:] = np.nan
    ds["spikes"][9, 20:] = np.nan
    s = from_recording(ds)
    assert s.train.shape[1] == 20 and sum(map(len, s.rows)) == 40
    assert s.report[-1]["time"] == "10 of 30 bins" and "2 of 40 trials" in s.report[-1]["reason"]
    assert all(torch.isfinite(x).all() for x in (s.train, s.valid, s.test))


@pytest.mark.parametrize("where, words", [
    ((5, slice(10, 12), 3), "trial 5, 0.2 s, unit 3"),       # inside
    ((5, slice(8, None), slice(None)), "trial 5, 0.16 s"),   # less than half is left
    ((5, slice(None), 3), "trial 5, 0 s, unit 3")])          # a unit that was not there
def test_what_was_not_observed_is_named(where, words):
    ds = recording().astype({"spikes": "float32"})
    ds["spikes"].values[where] = np.nan
    with pytest.raises(RecordingError, match=words) as e: from_recording(ds, name="M1 day1")
    assert str(e.value).startswith("M1 day1")


def test_a_recording_without_trials_is_cut_in_windows():
    ds = recording(trials=0, bins=3000)
    s = from_recording(ds, trial_seconds=1, gap=0.2)
    x = ds.spikes.values
    for first, part in zip(s.rows, (s.train, s.valid, s.test)):
        for f, w in zip(first, part): assert (w.numpy() == x[f:f + 50]).all()
    n, lost = sum(map(len, s.rows)), s.report[0]
    assert lost["time"] == f"{3000 - 50 * n} of 3000 bins" and n >= 57
    ds = ds.astype({"spikes": "float32"})
    ds["spikes"][600, 2] = np.nan
    with pytest.raises(RecordingError, match="12 s, unit 2"): from_recording(ds)


def test_worms_are_scaled_by_training_alone():
    ds = worms(1, seed=2, duration=700, frame_rate=3, neurons=45)[0]
    s = from_recording(ds)
    assert s.kind == "traces" and np.isnan(s.facts["rate"]) and s.bin_size == 1
    assert s.train.float().mean((0, 1)).abs().max() < 1e-4
    other, start = ds.copy(deep=True), int(s.rows[2][0])
    t = np.floor(ds.time.values + 1e-6).astype(int)
    other["trace"][(t >= start) & (t < start + 20)] += 7
    assert torch.equal(from_recording(other).train, s.train)
    assert (from_recording(other).test - s.test).abs().max() > 1
    flat = ds.copy(deep=True)
    flat["trace"][:, 3] = 0.5
    r = from_recording(flat)
    assert len(r.units) == 44 and r.report[-1]["neuron"] == str(ds.neuron.values[3])


def test_the_recordings_own_split_and_bad_questions():
    split = np.array(["train"] * 30 + ["val"] * 4 + ["test"] * 6)
    ds = recording(trial_info={"split": split})
    s = from_recording(ds, split="given")
    assert [len(r) for r in s.rows] == [30, 4, 6] and s.rows[1].tolist() == [30, 31, 32, 33]
    with pytest.raises(RecordingError, match="a part of its split is empty"):
        from_recording(ds.isel(trial=slice(0, 34)), split="given")
    for how, words in [
            (dict(bin_ms=-20), "bin_ms is out of range"), (dict(split="mine"), "random or given"),
            (dict(window=(0.3, 0.1)), "not fill the window"), (dict(parts=(1, 1)), "three parts"),
            (dict(units=-1), "units is out of range")]:
        with pytest.raises((RecordingError, ParameterError), match=words): from_recording(ds, **how)


@settings(max_examples=20)
@given(st.integers(1, 32), st.integers(0, 5))
def test_fewer_trials_lie_inside_one_another(n, seed):
    s = from_recording(recording())
    a, b = fewer(s, n, seed), fewer(s, min(n + 3, 32), seed)
    assert {*a.rows[0]} <= {*b.rows[0]} <= {*s.rows[0]} and len(a.train) == n
    assert torch.equal(a.test, s.test) and a.facts["trials"] == n + 8


# ---------------------------------------------------------------- pools
def test_sessions_of_one_size_and_one_animal_stay_apart(tmp_path):
    for i in range(3): save(recording(seed=i), tmp_path / f"day{i}.nc")
    found = sessions_in(tmp_path)
    assert [s.name for s in found] == ["M1 day0", "M1 day1", "M1 day2"]
    assert {s.subject for s in found} == {"M1"} and len({*found}) == 3
    assert (found[0].rows[1] != found[1].rows[1]).any()
    (tmp_path / "day0.nc").unlink()
    alone = sessions_in(tmp_path)                              # the split is that of the session
    for a, b in zip(found[1:], alone):
        assert a.name == b.name and all((x == y).all() for x, y in zip(a.rows, b.rows))


def test_copies_other_kinds_and_no_recordings_are_refused(tmp_path, monkeypatch):
    save(recording(), tmp_path / "one.nc")
    save(recording(), tmp_path / "two.nc")
    with pytest.raises(RecordingError, match="M1 two: one recording is in the pool twice"):
        sessions_in(tmp_path)
    with pytest.raises(RecordingError, match="the pool is empty"): check_pool([])
    mixed = [from_recording(ds) for ds in (recording(), worms(1, duration=300)[0])]
    with pytest.raises(RecordingError, match="differ in kind"): check_pool(mixed)
    monkeypatch.delenv("NEUROCOMPANION_MIRROR", raising=False)
    monkeypatch.setenv("NEUROCOMPANION_CACHE", str(tmp_path / "empty"))
    with pytest.raises(RecordingError, match="no session of aplysia is at hand"):
        pool("real", "aplysia")


def test_a_folder_of_many_layouts(tmp_path):
    ibl = [recording(units=5, subject=s, seed=i, eid=e)
           for i, (s, e) in enumerate((("KS01", "aa"), ("KS02", "bb")))]
    for ds in ibl: write_ibl(tmp_path / f"{ds.eid}.parquet", ds, eid=ds.eid)
    save(recording(units=9, subject="M9"), tmp_path / "mine.nc")
    long = recording(trials=100, bins=40, units=7, trial_info={"condition": np.zeros(100)})
    write_matlab(tmp_path / "slug.mat", long, "aplysia")
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / "empty.txt").write_text("")
    found = {s.name: s for s in sessions_in(tmp_path, bin_ms=20)}
    assert {"KS01 aa", "KS02 bb", "M9 mine", "slug"} == {*found}
    assert [len(s.units) for s in found.values()].count(5) == 2
    for name, ds in {identity(ds): ds for ds in ibl}.items():
        x = torch.cat([found[name].train, found[name].valid, found[name].test])
        assert float(x.sum()) == float(ds.spikes.sum())              # no trial is lost


def test_parts_of_a_session_in_several_files_are_one(tmp_path):
    ds = recording(units=5, subject="KS01", eid="aa")
    for part, rows in (("train", slice(0, 30)), ("val", slice(30, 34)), ("test", slice(34, 40))):
        write_ibl(tmp_path / f"aa_{part}.parquet", ds.isel(trial=rows), eid="aa")
    s, = sessions_in(tmp_path)
    assert s.facts["trials"] == 40 and [len(r) for r in s.rows] == [32, 4, 4]
    given_, = sessions_in(tmp_path, split="given")
    assert [len(r) for r in given_.rows] == [30, 4, 6]


def test_every_bad_file_is_named(tmp_path):
    save(recording(), tmp_path / "good.nc")
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n short")
    (tmp_path / "empty.nc").write_bytes(b"")
    (tmp_path / "odd.mat").write_bytes(b"MATLAB 5.0 MAT-file, but no more")
    save(recording(trials=2), tmp_path / "two_trials.nc")
    found = sessions_in(tmp_path)
    assert [s.name for s in found] == ["M1 good"]
    assert [k for k, _ in found.left_out] == ["cut.h5", "empty.nc", "odd.mat", "two_trials.nc"]
    with pytest.raises(RecordingError, match="not every recording can be used") as e:
        sessions_in(tmp_path, strict=True)
    for name in ("cut.h5", "empty.nc", "odd.mat"): assert name in str(e.value)
    (tmp_path / "good.nc").unlink()
    with pytest.raises(RecordingError, match="no recording can be used"): sessions_in(tmp_path)


@pytest.fixture(scope="module")
def ladder():
    return pool("simulated", sessions=6, world=dict(trials=40, units=[9, 9, 7, 8, 9, 12, 9]))


def test_a_simulated_pool_has_a_truth(ladder):
    d = np.array([s.facts["distance"] for s in ladder])              # a ladder: they add up
    assert not (np.diff(d[1:]) > 0).all()
    between = [[true_distance(a, b) for b in ladder] for a in ladder]
    np.testing.assert_allclose(between, np.abs(d[:, None] - d), atol=1e-6)
    assert len(pool("simulated", world=dict(trials=5, units=2))) == 25
    other = pool("simulated", sessions=6, data_seed=1, world=dict(trials=40, units=9))
    assert not {s.name for s in other} & {s.name for s in ladder}
    for source, world, kind in [("worms", dict(duration=300, neurons=40), "traces"),
                                ("steinmetz", dict(trials=10), "spikes")]:
        assert [s.kind for s in pool("simulated", source, sessions=2, world=world)] == [kind] * 3


@settings(max_examples=25)
@given(st.lists(st.one_of(st.floats(-1, 1), st.just(float("nan"))), min_size=7, max_size=7),
       st.integers(0, 99), st.permutations(range(7)))
def test_orders_are_permutations_that_know_no_order(ladder, values, seed, shuffled):
    score = {s.name: v for s, v in zip(ladder, values)}
    again = [ladder[i] for i in shuffled]
    for how in ("random", "ranked", "reverse"):
        found = order(ladder, how, seed=seed, score=score)
        assert {*found} == {*ladder} and found == order(again, how, seed=seed, score=score)
    best = [score[s.name] for s in order(ladder, "ranked", score=score)]
    known = [v for v in best if v == v]
    assert known == sorted(known, reverse=True) and best[:len(known)] == known


def test_good_units_are_counted():
    for how in (dict(good_clusters=[1, 0, 1, 1, 0, 0]),
                dict(quality=np.array("a b good Good mua good".split()))):
        assert facts([from_recording(recording(unit_info=how))]).quality[0] == 3


# ---------------------------------------------------------------- similarity
@pytest.mark.parametrize("name", MEASURES)
def test_measures_are_symmetric_and_read_training_alone(ladder, name):
    m, (a, b) = MEASURES[name], ladder[:2]
    assert m(a, a) == pytest.approx(0, abs=1e-6) and m(a, b) > 0
    assert m(a, b) == pytest.approx(m(b, a))
    bare = [s._replace(valid=None, test=None) for s in (a, b)]
    assert m(*bare) == m(a, b)
    turned = a._replace(train=a.train.flip(2))                     # units have no order
    assert m(turned, b) == pytest.approx(m(a, b), rel=1e-5)


# ---------------------------------------------------------------- real recordings
@pytest.mark.parametrize("source, sessions, animals", [
    ("steinmetz", 12, 4), ("aplysia", 21, 7), ("worms", 11, 11)])
def test_real_pools(mirror, source, sessions, animals):
    p = pool("real", source)
    assert len(p) == sessions and len({s.subject for s in p}) == animals
    for s in p:
        assert all(torch.isfinite(x).all() and len(x) for x in (s.train, s.valid, s.test))
        if s.kind == "spikes":
            least = USUAL[source]["min_rate"]
            assert (s.train.float().mean((0, 1)) / s.bin_size >= least * 0.999).all()
    assert all(len(hold_out(p, s, "subject")) < sessions for s in p)
    assert len(held(source)) >= (2 if source == "worms" else sessions)
    if source == "steinmetz":
        assert sum(s.facts["trials"] for s in p) == 3354 and p[0].train.shape[1] == 20
        assert p[0].facts["areas"] and {s.subject for s in p} == {
            "Cori", "Forssmann", "Hench", "Lederberg"}
    assert np.isfinite(similarities(p[0], p[1:3]).timescales).all()


def test_a_path_gives_the_same_sessions_as_the_registry_and_a_file_its_own(mirror, tmp_path):
    for i in (1, 2): (tmp_path / f"session0{i}.h5").symlink_to(
        mirror / "steinmetz2019" / f"session0{i}.h5")
    for x, y in zip(pool("real", sessions=2), sessions_in(tmp_path, min_rate=1.0)):
        assert x.name == y.name and torch.equal(x.test, y.test)
    s, = sessions_in(mirror / "macaque_small" / "DataHigh" / "ex2_rawspiketrains.mat")
    assert s.facts["trials"] == 112 and s.train.shape[1] == 50      # trials of unequal length
    assert "112 trials were not observed there" in str(s.report)
