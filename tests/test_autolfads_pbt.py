"Population-based training: decisions, engines that agree, and searches that survive a kill."
import json, math, os, signal, subprocess, sys, textwrap, time
from pathlib import Path

import numpy as np
import pytest
from processes import runs, until

from neurocompanion.autolfads.pbt import (
    SPACE, Range, draw, has_settled, parents, pbt, perturb, random_search)
from neurocompanion.core import ParameterError, TrainingError, atomic_path


class Stream:
    "Estimates of many means; the learning rate is the hyperparameter, NaN above its `wall`."
    wall = math.inf
    pause = 0.0

    def __init__(self, hyper, seed):
        self.hyper, self.seed, self.at, self.p = dict(hyper), seed, 0, np.full(50, 3.0)

    def update(self, hyper): self.hyper.update(hyper)

    @property
    def score(self): return float(np.mean(self.p ** 2))

    def save(self, path):
        with atomic_path(path) as tmp:
            tmp.write_text(json.dumps([self.at, self.hyper, self.p.tolist()]))

    def load(self, path):
        self.at, self.hyper, p = json.loads(Path(path).read_text())
        self.p = np.array(p)

    def run(self, epochs):
        rows = []
        for _ in range(epochs):
            time.sleep(self.pause)
            noise = np.random.default_rng((self.seed, self.at)).standard_normal(50)
            self.p, self.at = self.p + self.hyper["lr"] * (noise - self.p), self.at + 1
            if self.hyper["lr"] > self.wall: self.p[:] = np.nan
            rows.append({"epoch": self.at, "lr": self.hyper["lr"]})
        return rows


ONE = {"lr": Range(1e-3, 1.0, "log", 0.8, True)}
HOW = dict(members=6, epochs=3, lead=2, generations=5, seed=3, window=None)


@pytest.fixture(scope="module")
def expected(): return pbt(Stream, ONE, engine="serial", **HOW)


def test_a_pair_has_one_loser_every_member_trains_and_processes_agree_with_one(expected):
    assert expected.table["copied"].sum() == 4 * 3
    assert expected.epochs.groupby(["generation", "member"]).size().tolist() == [5] * 6 + [3] * 24
    assert (expected.epochs.groupby("generation")["epoch"].max() == [5, 8, 11, 14, 17]).all()
    assert pbt(Stream, ONE, **HOW, workers=4).table.equals(expected.table)


def test_more_generations_are_added_to_a_finished_search(expected, tmp_path):
    first = pbt(Stream, ONE, out=tmp_path, engine="serial", **{**HOW, "generations": 2})
    assert first.stopped == "generations" and len(first.past) == 2
    again = pbt(Stream, ONE, out=tmp_path, engine="serial", **HOW)
    assert again.table.equals(expected.table)
    calls = []
    once_more = pbt(lambda *a: calls.append(a) or Stream(*a), ONE, out=tmp_path, **HOW)
    assert once_more.table.equals(expected.table) and not calls    # nothing was trained again
    kept = sorted(p.name for p in (tmp_path / "states").glob("*.pt"))
    assert kept == [f"0004-{i:03d}.pt" for i in range(6)]


def test_half_a_generation_is_kept(expected, tmp_path):
    class Fails(Stream):
        def run(self, epochs):
            if self.at == 8 and fail and self.seed == bad: raise TrainingError("the disk is full")
            return super().run(epochs)
    bad, fail = json.loads(json.dumps(expected.past[0]["tasks"][4]["seed"])), True
    with pytest.raises(TrainingError, match="the disk is full") as e:
        pbt(Fails, ONE, out=tmp_path, engine="serial", **HOW)
    notes = getattr(e.value, "__notes__", None)               # Python 3.11 and later
    assert notes is None or "member 4, generation 2" in notes[0]
    assert list(tmp_path.glob("states/0002-*.json"))
    fail = False
    assert pbt(Fails, ONE, out=tmp_path, engine="serial", **HOW).table.equals(expected.table)


SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    from test_autolfads_pbt import HOW, ONE, Stream, pbt
    Stream.pause = 0.01
    pbt(Stream, ONE, out=sys.argv[1], workers=2, **HOW)
"""


def test_a_search_that_is_killed_again_and_again_ends_as_if_it_had_not_been(expected, tmp_path):
    script = tmp_path / "search.py"
    script.write_text(textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parent))))
    out, kills = tmp_path / "out", 0
    seen = lambda: len(list(out.glob("generation-*.json")))
    states = lambda: len(list(out.glob("states/*.json"))) + 10 * seen()
    while seen() < 4:
        before = states()
        run = subprocess.Popen([sys.executable, str(script), str(out)], start_new_session=True)
        until(lambda run=run, n=before + 4: states() >= n or run.poll() is not None, 60)
        time.sleep(0.013 * kills)
        children = _children(run.pid)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        kills += 1
        until(lambda pids=children: not any(map(runs, pids)), 10)    # they die with their parent
    found = pbt(Stream, ONE, out=out, engine="serial", **HOW)
    assert kills >= 2 and found.table.equals(expected.table)
    assert found.member().score == expected.member().score == expected.best["score"]
    assert not list(out.rglob("*.tmp")) or all(p.name.startswith(".") for p in out.rglob("*.tmp"))


def _children(pid):
    try: return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError: return []


def test_members_that_diverge_lose_and_come_back():
    class Walled(Stream): wall = 0.3
    found = pbt(Walled, ONE, **{**HOW, "members": 8}, engine="serial")
    table = found.table.set_index(["generation", "member"])
    lost = table.index[table["score"].isna() & (table.index.get_level_values(0) < 4)]
    assert len(lost)
    for generation, member in lost:
        after = table.loc[(generation + 1, member)]
        assert after["copied"]
        assert not math.isnan(table.loc[(generation, after["parent"])]["score"])
    assert not math.isnan(found.best["score"])


def test_a_search_stops_when_it_has_settled():
    class Flat(Stream): score = 1.0
    found = pbt(Flat, ONE, members=3, epochs=1, generations=50, engine="serial")
    assert found.stopped == "no improvement" and len(found.past) == 5
    long = random_search(Flat, ONE, members=3, epochs=1, generations=8, engine="serial")
    assert long.stopped == "generations" and len(long.past) == 8 and not long.table["copied"].any()


def test_random_search_has_the_same_start_fixed_hyperparameters_and_a_worse_end(expected):
    b = random_search(Stream, ONE, fixed={"kl": 0.5}, members=6, epochs=3, lead=2, generations=5,
                      seed=3).table
    first = lambda t: t[t["generation"] == 0].drop(columns="kl", errors="ignore")
    assert first(expected.table).equals(first(b)) and (b["kl"] == 0.5).all()
    assert b.groupby("member")["lr"].nunique().eq(1).all()
    # where a schedule is needed, a population beats random search
    how = dict(members=8, epochs=4, generations=20, engine="serial")
    for seed in range(2):
        a = pbt(Stream, ONE, window=None, seed=seed, **how).best["score"]
        b = random_search(Stream, ONE, seed=seed, **how).best["score"]
        assert a < 0.8 * b


def test_draws_and_steps_follow_their_laws():
    many = draw(SPACE, 2000, seed=5)
    assert all(m["lr"] == 4e-3 and m["cd_rate"] == 0.5 for m in many)
    u = np.array([m["dropout"] for m in many]) / 0.6
    v = (np.log10([m["kl_co"] for m in many]) + 6) / 2
    for x in (u, v): assert abs(np.sort(x) - np.linspace(0, 1, 2000)).max() < 0.04
    rng = np.random.default_rng(0)
    m = np.array([abs(math.log(perturb(1.0, Range(0, 9, 1.0, 0.3), rng))) for _ in range(4000)])
    low, high = math.log1p(6e-4), math.log1p(0.3)
    assert low <= m.min() and m.max() <= high
    assert abs(np.sort((m - low) / (high - low)) - np.linspace(0, 1, 4000)).max() < 0.03


def test_settling_counts_from_before_the_window_and_parents_are_never_worse():
    assert not has_settled([2, 1, 1, 1, 1]) and has_settled([2, 1, 1, 1, 1, 1])
    assert not has_settled([math.inf, math.inf, 3, 2, 1, 0.9])
    assert not has_settled([-1.0, -1.1, -1.2, -1.3, -1.4])
    for seed in range(200):
        rng = np.random.default_rng(seed)
        s = rng.standard_normal(7)
        s[rng.random(7) < 0.3] = np.nan
        for rivals in ("pairs", "random"):
            found = parents(s, rng, rivals)
            if np.isnan(s).all(): continue
            for i, c in enumerate(found):
                assert not math.isnan(s[c]) and (c == i or math.isnan(s[i]) or s[c] < s[i])


def test_bad_arguments_and_folders_that_are_refused(tmp_path):
    for name, value in dict(members=0, epochs=0, generations=0, workers=0, seed=-1).items():
        with pytest.raises(ParameterError, match=f"{name} is out of range"):
            pbt(Stream, ONE, **{**HOW, name: value})
    search = lambda out=tmp_path, **other: pbt(Stream, ONE, out=out, engine="serial",
                                               **{**HOW, **other})
    search(generations=2)
    for other in (dict(members=5), dict(epochs=4), dict(seed=9)):
        with pytest.raises(TrainingError, match="another search"): search(**other)
    with pytest.raises(TrainingError, match="another search"):
        random_search(Stream, ONE, out=tmp_path, engine="serial")
    (tmp_path / "generation-0001.json").write_text("{")
    with pytest.raises(TrainingError, match="generation-0001.json"): search()
    with pytest.raises(ParameterError, match="out is no folder"):
        search(tmp_path / "generation-0001.json")


# ---- one folder, one data set, one network
def lfads(seed=0, **sizes):
    from neurocompanion.autolfads import data, training
    made = data.lorenz("simulated", conditions=3, repeats=5, units=6, steps=8, seed=seed)
    small = dict(ic_encoder=4, ic=3, generator=5, factors=2)
    return training.maker(made, small | sizes, batch=6, device="cpu")


SHORT = dict(members=3, epochs=1, generations=2, seed=1, engine="serial", window=None)


@pytest.mark.parametrize("other, words", [
    (dict(seed=1), "train.0. .*float32"), (dict(generator=6), "model")])
def test_a_finished_search_knows_its_data_and_its_network(tmp_path, other, words):
    found = pbt(lfads(), out=tmp_path, **SHORT)
    files = lambda: {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and
                     p.suffix != ".lock"}
    before = files()
    for more in ({}, {"generations": 3}):
        with pytest.raises(TrainingError, match="other data or another network.*" + words) as e:
            pbt(lfads(**other), out=tmp_path, **SHORT | more)
        assert str(tmp_path) in str(e.value) and files() == before
    for more in ({}, {"generations": 3}):
        assert pbt(lfads(), out=tmp_path, **SHORT | more).table[:6].equals(found.table)


@pytest.mark.parametrize("search", [pbt, random_search])
def test_an_unfinished_generation_is_not_taken_up_with_other_data(tmp_path, search):
    make, calls = lfads(), []

    def fails(hyper, seed):
        calls.append(seed)
        if len(calls) == 3: raise TrainingError("the power is gone")
        return make(hyper, seed)

    how = {k: v for k, v in SHORT.items() if search is pbt or k != "window"}
    with pytest.raises(TrainingError, match="power"): search(fails, out=tmp_path, **how)
    assert len(list(tmp_path.glob("states/0000-*.json"))) == 2
    with pytest.raises(TrainingError, match="other data or another network"):
        search(lfads(1), out=tmp_path, **how)
    whole = search(make, out=tmp_path, **how)
    assert whole.table.equals(search(make, **how).table)


def test_members_that_do_not_say_what_they_are_made_from(tmp_path):
    pbt(Stream, ONE, out=tmp_path, engine="serial", **HOW)
    assert "made" not in json.loads((tmp_path / "generation-0000.json").read_text())["results"][0]

    class Says(Stream): made_from = {"data": 1}
    pbt(Says, ONE, out=tmp_path, engine="serial", **HOW)      # nothing is known: nothing refused
    pbt(Says, ONE, out=tmp_path / "other", engine="serial", **HOW)
    with pytest.raises(TrainingError, match="expected data = None, found data = 1"):
        pbt(Stream, ONE, out=tmp_path / "other", engine="serial", **HOW)
