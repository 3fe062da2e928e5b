"sessions' experiments: the ranking, what it may look at, what is kept, and what a sweep asks for."
import numpy as np
import pandas as pd
import pytest
import torch

from neurocompanion.core import NeurocompanionError, home
from neurocompanion.recordings.standard import save as save_recording
from neurocompanion.sessions import experiments as ex
from neurocompanion.sessions import pools, selection as se, statistics as st
from neurocompanion.sessions.data import shuffled
from neurocompanion.sessions.setting import Setting
from neurocompanion.sweeps.paper import names
from neurocompanion.sweeps.sweep import expand, load

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = dict(epochs=2, tune_epochs=2)
TINY = dict(data="simulated", sessions=4, trials=30, units=8, **QUICK)
FAST = QUICK | dict(model="linear", token=4, lr=0.01, patience=0, take=())


@pytest.fixture(autouse=True)
def kept_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROCOMPANION_RESULTS", str(tmp_path))


@pytest.fixture(scope="module")
def few():
    return se.load(Setting(**TINY))


def test_the_order_of_the_pool_changes_nothing(few):
    held, rest = few
    a, b = (se.rank_sessions(held, pool, seeds=2, **FAST) for pool in (rest, rest[::-1]))
    assert a.session.tolist() == b.session.tolist() and a.score.is_monotonic_decreasing
    assert (a.low < a.score).all() and (a.score < a.high).all()
    np.testing.assert_allclose(a.score, b.score, atol=1e-5)


def test_neither_test_trials_nor_the_pools_validation_scores_choose(few):
    held, rest = few
    blind = held._replace(test=torch.zeros_like(held.test))
    a, b = (se.rank_sessions(h, rest, seeds=1, **FAST) for h in (held, blind))
    assert a.equals(b) and a.attrs["verdict"] != b.attrs["verdict"]
    other = held._replace(valid=held.valid.flip(0, 1))
    assert not a.equals(se.rank_sessions(other, rest, seeds=1, **FAST))
    shelf = se.Shelf()                                         # nor do bodies see the held out
    se.rank_sessions(held, [*rest, held], seeds=1, shelf=shelf, **FAST)
    bodies = [m for m in shelf.found.values() if isinstance(m, torch.nn.Module)]
    own = [m for m in bodies if held.name in m.sessions]
    assert [list(m.sessions) for m in own] == [[held.name]]        # the control "alone"
    assert sorted(n for m in bodies for n in m.sessions if m not in own) == sorted(
        r.name for r in rest)


def test_co_smoothing_sees_no_unit_that_it_tells(few):
    held, _ = few
    body = se.pretrained(Setting(**TINY), [held], 0, se.Shelf())[0]
    told = se.co_smoothed(body, held)
    size = {part: v.size.sum() for part, v in told.items()}
    away = np.isclose([held.test[..., [i]].sum() for i in range(len(held.units))], size["test"])
    assert away.any()                                          # one of eight units is told
    at = int(np.flatnonzero(away)[0])
    def gain(times):                     # linear in the counts, if the forecast does not see them
        new = held.test.clone()
        new[..., at] *= times
        return se.co_smoothed(body, held._replace(test=new))["test"].gain

    none, once, twice = map(gain, range(3))
    assert np.abs(once - none).max() > 1e-3
    np.testing.assert_allclose(twice - once, once - none, atol=1e-5)
    t = se.rank_sessions(held, few[1], seeds=1, by="co_smoothing", **FAST)
    assert "mean" in t.attrs["controls"] and abs(t.attrs["controls"]["mean"]) < 1e-6


def test_what_was_trained_is_kept_and_a_damaged_file_is_made_again(few, tmp_path):
    held, rest = few
    ask = lambda: se.rank_sessions(held, rest, seeds=2, shelf=tmp_path / "s", **FAST)
    first, files = ask(), sorted((tmp_path / "s").iterdir())
    times = {f: f.stat().st_mtime_ns for f in files}
    assert len(files) == 2 * (3 * len(rest) + 3) and ask().equals(first)
    assert {f: f.stat().st_mtime_ns for f in files} == times
    for f in files: f.write_bytes(b"{")
    assert ask().equals(first)


@pytest.mark.parametrize("change", [dict(epochs=3), dict(lr=0.02), dict(token=5), dict(batch=8),
                                    dict(ratio=0.4), dict(model="gru")])
def test_another_setting_is_another_body(few, change):
    _, rest = few
    a, b = (se._digest(se._pretraining(Setting(**{**QUICK, **c}), rest, 0, 1))
            for c in ({}, change))
    assert a != b


@pytest.mark.parametrize("model", ["linear", "gru", "ndt"])
def test_every_body_goes_the_whole_way(model):
    rows = pd.DataFrame(ex.run("scaling", **TINY, model=model, width=8, heads=2, layers=1,
                               feedforward=8, ranked_by="0", sizes="1,2,all"))
    assert rows[["valid", "test", "test_unit"]].notna().all().all()
    assert (rows.what == "scaling").sum() == 7


def test_a_laboratorys_own_files(tmp_path):
    made = pools.simulated(3, trials=30, steps=30, units=6, bin_size=0.02)
    (tmp_path / "pool").mkdir()
    for i, ds in enumerate(made[1:]): save_recording(ds, tmp_path / "pool" / f"{i}.nc")
    save_recording(made[0], tmp_path / "mine.nc")
    t = ex.rank_sessions(tmp_path / "mine.nc", tmp_path / "pool", seeds=2, **FAST)
    assert list(t.columns)[:6] == ["session", "score", "low", "high", "rank", "group"]
    assert len(t) == 3 and {"over_alone", "over_smoothing", "over_untrained"} < {*t.columns}
    mine, *_ = pools.sessions_in(tmp_path / "mine.nc")
    u = ex.rank_sessions(mine, pools.sessions_in(tmp_path / "pool"), seeds=2, **FAST)
    np.testing.assert_allclose(t.score, u.score, atol=1e-6)


def test_what_cannot_be(few):
    for wrong, said in [(dict(by="mouse"), "no such by"), (dict(source="mice"), "no such source"),
                        (dict(data="nowhere"), "no such data")]:
        with pytest.raises(NeurocompanionError, match=said): ex.run("scaling", **{**TINY, **wrong})
    held, rest = few
    with pytest.raises(NeurocompanionError, match="width of bins"):
        se.rank_sessions(held._replace(bin_size=0.1), rest, **FAST)


@pytest.mark.parametrize("asked, said", [
    (dict(by="subject"), "without=.subject"), (dict(trials=30), "trials has no meaning"),
    (dict(seed=3), "pass seeds"), (dict(seeds=2.5), "a ranking needs seeds"),
    (dict(seeds=0), "a ranking needs seeds"), (dict(by="decoding", label="mood"), "no such label"),
    (dict(patience=-1), "patience"), (dict(mouse=1), "no such parameter")])
def test_what_a_ranking_does_not_know_is_refused(few, asked, said):
    held, rest = few
    with pytest.raises(NeurocompanionError, match=said):
        se.rank_sessions(held, rest, **FAST | dict(seeds=1) | asked)


def test_a_ranking_looks_at_what_it_is_given(few):
    held, rest = few
    silent = rest[0]._replace(name="silent", train=torch.zeros_like(rest[0].train))
    day = rest[1]._replace(name=held.name)
    t = se.rank_sessions(held, [*rest[2:], day, silent, held], seeds=1, **FAST)
    assert sorted(t.session) == sorted([*(r.name for r in rest[2:]), f"{held.name} (2)"])
    assert t.attrs["left_out"] == {"silent": "no spike in its training trials",
                                   held.name: "it is your session"}
    with pytest.raises(NeurocompanionError, match="nothing can be learned from your session"):
        se.rank_sessions(silent, rest, **FAST)
    t = se.rank_sessions(held, rest, seeds=2, by="decoding", **FAST)
    assert "condition told right" in t.attrs["verdict"] and t.attrs["controls"]["mean"] == 0
    long = held._replace(**{k: torch.cat([getattr(held, k)] * 2, 1) for k in (
        "train", "valid", "test")})                        # longer trials than the pool's
    assert len(se.rank_sessions(long, rest, seeds=1, **FAST)) == len(rest)


def test_nothing_helps_where_there_is_nothing_to_learn(few):
    held, rest = few
    t = se.rank_sessions(held, [shuffled(r) for r in rest], seeds=2, **FAST | dict(take=(2,)))
    assert "Nothing in this pool" in t.attrs["verdict"] and t.attrs["k"] in (1, 2)
    assert {"mean", "psth", "smoothing", "untrained", "alone"} == {*t.attrs["controls"]}


def test_a_body_that_was_never_trained_is_as_good_as_alone_if_all_is_trained(few):
    held, _ = few
    s, shelf = Setting(**QUICK | dict(tune="all")), se.Shelf()
    alone = se.controls(s, held, 0, shelf)["alone"]
    drawn = se.tuned_scores(s, held, [[]], 0, shelf)[0]
    assert drawn["test"] == pytest.approx(alone["test"], abs=1e-6)


def test_leaving_out_an_animal(monkeypatch):
    own = pools.pool("simulated", sessions=3, world=dict(trials=30, units=8))
    pair = [p._replace(facts=p.facts | {"subject": "ab"[i // 2]}) for i, p in enumerate(own)]
    monkeypatch.setattr(se, "_pool", lambda data, source, sessions, split, data_seed, trials,
                        units, steps, bin_ms: pair)
    for by, n in (("session", 3), ("subject", 2)):
        assert len(se.load(Setting(data="simulated", by=by))[1]) == n


def test_sweeps_at_the_scale_of_the_paper():
    for spec in map(load, (home() / "nbs/sessions/sweeps").glob("*.yaml")):
        assert all(p["data"] == "simulated" for p in expand(spec, "tiny"))
        assert all((p["model"], p["token"], p["width"], p["layers"], p["epochs"], p["lr"])
                   == ("ndt", 668, 512, 5, 1000, 1e-4) for p in expand(spec, "paper"))


@pytest.mark.parametrize("name", ["headline", "worms", "models", "mice", "controls",
                                  "mice_shuffled", "coverage", "few_trials", "leak"])
def test_tiny_sweeps_run(name):
    for p in expand(f"sessions/{name}", "tiny")[-2:]:
        rows = pd.DataFrame(ex.run(**p))
        assert len(rows) and not set(rows) & set(names(Setting))


def test_the_files_that_a_run_reads(mirror):
    assert len(ex.inputs(data="real", source="aplysia")) == 21
    assert all(k.startswith("steinmetz2019/") for k in ex.inputs(data="real"))


def test_the_number_of_sessions_is_chosen_without_the_test_trials():
    base = [dict(what="baseline", against="alone", held="A", test=0.0, valid=0.0)]
    rows = [dict(what="scaling", held="A", order="ranked", size=n, valid=v, test=t)
            for n, v, t in ((1, 0.3, 0.1), (2, 0.2, 0.9))]
    rows = pd.DataFrame(base + rows)
    assert st.table_1(rows).loc["A", "ranked"] == 0.1
    assert st.table_1(rows, "test").loc["A", "ranked"] == 0.9
