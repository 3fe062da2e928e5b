"autolfads' tasks, methods and experiments: every sweep at its smallest, and the real recordings."
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from neurocompanion.autolfads import experiments as ex, methods as me, tasks as ts
from neurocompanion.autolfads.setting import Setting
from neurocompanion.core import NeurocompanionError, ParameterError, home
from neurocompanion.recordings.spikes.counts import unslide
from neurocompanion.recordings.standard import save, spikes
from neurocompanion.sweeps.paper import names
from neurocompanion.sweeps.sweep import expand, load, write_run

SWEEPS = sorted((home() / "nbs/autolfads/sweeps").glob("*.yaml"))
SMALL = dict(generator=12, encoder=8, ic=8, factors=6, samples=5, batch=32)
CHAOS = dict(**SMALL, task="chaotic", trials=60, units=12, steps=15, epochs=4)


toy = partial(Setting, data="simulated")
run = lambda name, out="", **how: ex.run(name, out, **{"data": "simulated", **how})
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("path", SWEEPS, ids=[p.stem for p in SWEEPS])
def test_every_sweep_runs_at_its_smallest_and_can_at_every_scale(path, tmp_path):
    for scale in ("tiny", "laptop", "paper"):
        for asked in expand(load(path), scale):
            assert asked["experiment"] in ex.EXPERIMENTS
            assert scale != "tiny" or asked["data"] == "simulated"
            if scale != "paper": assert asked["engine"] == "serial"
    runs = [r for r in expand(load(path), "tiny") if r["seed"] == 0]
    for i, asked in enumerate(runs):
        rows = ex.run(out=tmp_path / f"{i}", **asked)
        table = write_run(rows, asked, tmp_path / f"r{i}")
        assert len(table) == len(rows) and not set(pd.DataFrame(rows)) & set(names(Setting))
        assert np.isfinite(pd.DataFrame(rows).get("fit_seconds", pd.Series([0.0]))).any()


def test_a_checkpoint_gives_the_same_again_and_a_pair_differs_in_dropout_alone(tmp_path):
    a, b, seed, cd = (run("overfitting", out, **CHAOS, cd_rate=rate, seed=s) for out, rate, s in (
        (tmp_path, 0.3, 0), (tmp_path, 0.3, 0), ("", 0.3, 1), ("", 0, 0)))
    drop = lambda rows: pd.DataFrame(rows).drop(columns="fit_seconds")
    pd.testing.assert_frame_equal(drop(a), drop(b))
    assert (tmp_path / "network.pt").is_file()
    a, seed, cd = (rows[0] for rows in (a, seed, cd))
    assert {k for k in a if k.startswith("hp_") and a[k] != cd[k]} == {"hp_cd_rate"}
    assert a["nll_true"] == cd["nll_true"] and len({r["nll"] for r in (a, seed, cd)}) == 3


def test_a_network_that_diverges_is_a_row(monkeypatch):
    monkeypatch.setattr(ex, "drawn", lambda s: {"lr": 1e6, "cd_rate": s.cd_rate})
    row, = run("overfitting", **{**CHAOS, "epochs": 40})
    assert row["diverged"] and "r2" not in row


def test_searches_cost_the_same():
    how = {**CHAOS, "members": 3, "generations": 2}
    t = {k: pd.DataFrame(run("search", **how, kind=k)) for k in ("pbt", "random")}
    assert [v.trained.sum() for v in t.values()] == [12, 12]
    last = t["random"].query("what == 'last'")
    chosen = t["random"].query("what == 'chosen'").iloc[0]
    assert chosen.best_score <= last.score.min() + 1e-9 and len(last) == 3


def test_test_trials_teach_nobody_anything(tmp_path):
    ds = ts.load(toy(task="dad", trials=50, steps=16))
    save(ds, tmp_path / "a.nc")
    s = toy(**SMALL, task="dad", data=str(tmp_path / "a.nc"), epochs=3)
    cut = ts.study(s)
    other = ds.copy(deep=True)
    other["spikes"][cut.test] = 3
    other["movement"][cut.test] = 0.5
    save(other, tmp_path / "b.nc")
    again = ts.study(replace(s, data=str(tmp_path / "b.nc")))
    assert (again.test == cut.test).all() and (again.data.train == cut.data.train).all()
    y = ts.behaviour_of(cut.recording, s)[cut.fit]
    for k in me.METHODS[:4]:
        fit = [me.method(c.data, replace(s, method=k), y) for c in (cut, again)]
        x = cut.of("spikes", cut.fit)
        assert np.array_equal(fit[0].rates(x), fit[1].rates(x))


@pytest.mark.parametrize("window, steps", [(2, 5), (3, 17), (8, 31), (5, 4)])
def test_sums_become_counts_that_give_the_same_sums(window, steps):
    single = np.random.default_rng(window).poisson(0.4, (6, steps + window - 1, 5))
    sums = np.lib.stride_tricks.sliding_window_view(single, window, axis=1).sum(-1)
    found, certain = unslide(sums, window)
    assert found.shape == single.shape and found.min() >= 0 and 0 <= certain <= 1
    again = np.lib.stride_tricks.sliding_window_view(found, window, axis=1).sum(-1)
    assert (again == sums).all()


def test_hidden_spikes_are_hidden():
    data = ts.halves(toy(trials=60, units=10, steps=15))
    s = toy(**SMALL, epochs=2, latents=2)
    hidden = np.random.default_rng(0).random(data.valid.shape) < 0.2
    for k in me.METHODS[:4]:
        m = me.method(data, replace(s, method=k))
        a = m.rates(np.where(hidden, np.nan, data.valid).astype(np.float32))
        b = m.rates(np.where(hidden, np.nan, data.valid + 5 * hidden).astype(np.float32))
        assert np.isfinite(a).all() and np.array_equal(a, b)


def test_diagnosis_of_one_that_is_new_of_a_perfect_copy_and_of_the_truth():
    s = toy(**SMALL, trials=60, units=10, steps=15, epochs=1, lr=1e-5)
    new = me.diagnose(me.network(ts.halves(s), s).trained)
    assert not new.copies and "learned nothing" in new.sentence
    rng = np.random.default_rng(0)
    rate = rng.gamma(1.0, 0.3, (60, 20, 15))
    y = rng.poisson(rate)
    mean = np.broadcast_to(y.mean((0, 1)), y.shape)
    copied = me._verdict(*me._gains(0.95 * y + 0.05 * mean, mean, y), 0.2, 40)
    honest = me._verdict(*me._gains(rate, rate, y), 1.0, 0.0)
    assert copied.copies and copied.lost > 0.9 and "less than any true rates" in str(copied)
    assert not honest.copies and honest.lost == 0 and honest.gap_z == 0
    assert "No sign of copying" in str(honest)


def test_choices_by_each_criterion():
    t = pd.DataFrame(dict(score=[1.0, 2.0, 3.0], hidden=[0, 1, math.nan], decoding_r2=[0, 1, 2],
                          psth_r2=[5, 4, 3]))
    rows = pd.DataFrame(ex.choices(t)).set_index(["selected_by", "metric"])
    assert rows.loc[("score", "decoding_r2"), "rank"] == 2
    assert rows.loc[("score", "psth_r2"), "reached"] == 1


@pytest.mark.parametrize("wrong, said", [
    (dict(task="x"), "no such task"), (dict(method="svm"), "no such method"),
    (dict(colour=1), "no such parameter"), (dict(data="real", task="chaotic"), "synthetic"),
    (dict(epochs=0), "epochs is out of range"), (dict(data="none.mat", task="dad"), "none.mat"),
    (dict(test=1.0, task="dad"), "test is a share"), (dict(kind="grid"), "no such kind")])
def test_what_cannot_be(wrong, said):
    with pytest.raises(NeurocompanionError, match=said):
        run("decoding", **{**SMALL, "trials": 40, "steps": 16, "method": "gpfa", **wrong})


def test_an_own_recording_without_truth_and_trials_of_unequal_length(tmp_path):
    x = np.random.default_rng(0).poisson(0.3, (30, 20, 6)).astype(float)
    x[3, 15:] = np.nan
    x[4, :2] = np.nan
    save(spikes(x, bin_size=0.02, subject="a", source="b"), tmp_path / "a.nc")
    own = dict(task="dad", data=str(tmp_path / "a.nc"))
    assert ts.load(toy(**own)).sizes["time"] == 13                      # cut to the shortest
    with pytest.raises(NeurocompanionError, match="not known"): ex.run("accuracy", **SMALL, **own)
    assert len(ex.inputs(data=own["data"])["a.nc"]) == 64


def test_every_real_task(mirror):
    sizes = {"dad": (96, 31, 71), "neuraltraj": (140, 26, 45), "datahigh": (210, 20, 61)}
    for task, size in sizes.items():
        ds = ts.load(toy(data="real", task=task))
        assert ds["spikes"].shape == size
    for task, units in (("aplysia", 136), ("maze", 182), ("kato", 109)):
        c = ts.chops(toy(data="real", task=task))
        assert c.x.shape[1] == units and len(c.data.valid) >= 3
    assert ts.halves(toy(data="real", task="lorenz_file")).train.shape == (640, 100, 60)
    found = [ex.inputs(e, data="real") for e in ("decoding", "psth", "continuous", "calcium")]
    assert all(len(v) == 64 for each in found for v in each.values()) and all(found)
    from neurocompanion.recordings.read import read as read_spikes
    x = read_spikes(Path(mirror) / "macaque_small/DAD/chewie_demo.mat")[0]["spikes"].values
    assert unslide(x, 8)[1] > 0.99                      # dad has windows of eight steps alone
    for window in (7, 9):
        with pytest.raises(NeurocompanionError, match="no sums"): unslide(x, window)


def test_velocity_and_psths_of_real_reaches_without_a_network(mirror):
    score = {t: run("decoding", data="real", task=t, method="gpfa")[0]
             for t in ("dad", "neuraltraj")}
    assert score["dad"]["r2"] > 0.4 and score["neuraltraj"]["r2"] > 0.3
    assert all(r["hidden"] > 0 for r in score.values())
    p = run("psth", data="real", method="gpfa", test=0.34)[0]
    assert 0.2 < p["r2_fit"] < 1 and p["hidden"] > 0
    how = dict(data="real", task="neuraltraj", trials=0, units=20, steps=0, examples=1, seed=1)
    rows = run("decoding", method="smoothing", **how)      # behaviour with gaps, beside a GLM
    units = [r for r in rows if r["what"] == "unit"]
    assert len(units) == 20 and all(np.isfinite(r["glm_hidden"]) for r in units)


def test_baselines_do_not_learn_from_what_they_are_judged_on(monkeypatch):
    seen = {}
    for name in ("smoother", "linear"):
        real = getattr(me, name)
        monkeypatch.setattr(me, name, lambda *a, _n=name, _f=real, **k: (
            seen.setdefault(_n, [v for v in a if hasattr(v, "train")][0]), _f(*a, **k))[1])
    run("accuracy", **SMALL, epochs=2, task="lorenz", trials=60, units=12, steps=15)
    assert all(len(v.valid) == 0 for v in seen.values()) and len(seen) == 2
    cut = ts.chops(toy(task="maze", steps=600, units=10))
    learned = {c.tobytes() for c in (*cut.data.train, *cut.data.valid)}
    assert len(cut.test) and not any(c.tobytes() in learned for c in cut.test)


def test_units_that_are_withheld_may_lie_anywhere_or_leave_trials_out(tmp_path):
    ds = ts.load(toy(task="dad", trials=60, steps=20))
    found, every = [], np.arange(ds.sizes["unit"])
    for order in (every, np.roll(every, 6)):                # they come last, or first
        own = ds.isel(unit=order).assign_coords(heldout=("unit", np.isin(order, every[-6:])))
        path = tmp_path / f"{order[0]}.nc"
        save(own, path)
        how = dict(data=str(path), task="dad", behaviour="movement", method="gpfa")
        found.append(run("decoding", **how)[0])
    assert found[0]["r2"] == pytest.approx(found[1]["r2"], abs=1e-6)
    assert found[0]["hidden"] == pytest.approx(found[1]["hidden"], abs=0.05)   # other elements
    x = ds.spikes.values.astype(float)
    x[50:, :, 40:] = np.nan                                # as in a benchmark's evaluation trials
    save(ds.assign(spikes=(ds.spikes.dims, x)), tmp_path / "own.nc")
    with pytest.warns(UserWarning, match="10 of 60 trials are left out"):
        row = run("decoding", data=str(tmp_path / "own.nc"), behaviour="movement",
                  method="smoothing")
    assert row[0]["used_trials"] + row[0]["test_trials"] == 50


def test_a_condition_without_training_trials_is_named():
    with pytest.raises(ParameterError, match="not in both training and test"):
        run("psth", task="datahigh", trials=60, steps=15, train_trials=4, method="smoothing")


def test_a_search_is_reported_with_the_weights_it_names():
    s = toy(**{**SMALL, "batch": 60}, task="lorenz", trials=60, units=12, steps=15, members=2,
            generations=2, epochs=8, lr=0.05)
    data = ts.halves(s)
    grown = me.population(data, s)
    member = grown.search.member()
    assert grown.trained.best == member.score
    assert me.diagnose(grown.search) == me.diagnose(grown.trained)
    for a, b in zip(grown.trained.model.parameters(), member.model.parameters()):
        assert torch.equal(a, b)
    free = me.population(data, replace(s, kind="random"))
    assert free.trained.best == free.search.table.best.min()


TINY = dict(generator=4, encoder=3, ic=2, factors=2, samples=2, batch=64, epochs=2)
KNOWN = dict(trials=16, units=6, steps=6)
AWAY = dict(
    overfitting=KNOWN | dict(examples=1), accuracy=KNOWN | dict(latents=2), uncertainty=KNOWN,
    search=KNOWN | dict(members=2, generations=2, controller=2, inputs=1),
    decoding=dict(method="lfads"), psth=dict(method="lfads"), selection={},
    continuous=dict(method="lfads"), calcium=dict(method="lfads"))


@pytest.mark.parametrize("experiment", ex.EXPERIMENTS)
def test_an_accelerator_finds_what_a_processor_finds(experiment):
    import pretend                                # not where there is a GPU: it would be in the way
    here = run(experiment, **TINY, **AWAY[experiment])
    with pretend.accelerator() as waits: there = run(experiment, **TINY, **AWAY[experiment])
    assert any(line.startswith("training.py") for line in waits) and len(here) == len(there)
    for a, b in zip(here, there):
        words, numbers = ({k for k, v in a.items() if isinstance(v, (str, dict)) == kind
                           and "seconds" not in k and k != "verdict"} for kind in (True, False))
        assert all(a[k] == b[k] for k in words)
        assert {k: b[k] for k in numbers} == pytest.approx({k: a[k] for k in numbers}, rel=2e-3,
                                                           abs=1e-3, nan_ok=True)


def test_autolfads_on_an_accelerator_finds_out_how_much_it_can_train():
    import pretend
    from neurocompanion.autolfads.estimators import AutoLFADS
    x = np.random.default_rng(0).poisson(0.5, (16, 8, 5)).astype(np.float32)
    with pretend.accelerator():
        a = AutoLFADS(2, 0.02, bin_size=0.02, generator=4, factors=2, samples=2).fit(x)
        assert a.rates()["rate"].shape == x.shape and np.isfinite(a.score())
    assert a.network_.readout.weight.device.type == "pretend"
