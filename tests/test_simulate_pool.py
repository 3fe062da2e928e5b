"The simulated eight-source pool: what is planned is what is read back, and errors name their file."
import hashlib, multiprocessing, os, time
from collections import Counter
from functools import partial

import numpy as np
import pytest
from processes import runs, until

from neurocompanion.core import ParameterError, RecordingError
from neurocompanion.recordings.worm import simulate_pool as sp
from neurocompanion.recordings.worm.simulate_pool import POOL, plan, read_pool, write_pool
from neurocompanion.recordings.standard import NEURONS, check
from neurocompanion.recordings.read import read as read_worms
from neurocompanion.recordings.worm.labels import SOURCES
from neurocompanion.worm_scaling.data import standardise, windows

THIN = dict(worms=0.03, minutes=1.0)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    "A thin pool: its folder, its files, and the worms in them by file."
    folder = tmp_path_factory.mktemp("pool")
    paths = write_pool(folder, **THIN)
    return folder, paths, {p: read_worms(p) for p in paths}


def digests(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


def of_plan(pool):
    "Each planned file with the worms that were read from it, in order."
    _, paths, found = pool
    left = list(paths)
    for f in plan(**THIN):
        n = f["n"] if f["source"] == "flavell2023" else 1
        yield f, [ds for p in left[:n] for ds in found[p]]
        left = left[n:]
    assert not left


# ---- The table and the plan
def test_the_table_is_the_papers():
    assert set(POOL) == set(SOURCES)
    table = {k: (sum(s.files.values()), s.labelled, s.recorded) for k, s in POOL.items()}
    assert table == {
        "kato2015": (12, 42, 127), "nichols2017": (44, 34, 108), "skora2018": (12, 46, 129),
        "uzel2022": (6, 50, 138), "kaplan2020": (19, 36, 114), "yemini2021": (49, 110, 125),
        "flavell2023": (42, 88, 136), "leifer2023": (103, 69, 122)}


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_the_plan_meets_the_means_and_a_thin_one_is_its_beginning(seed):
    files = plan(seed=seed)
    assert sum(f["n"] for f in files) == 287
    for name, s in POOL.items():
        own = [f for f in files if f["source"] == name]
        for key, mean in (("labelled", s.labelled), ("neurons", s.recorded)):
            assert np.mean([v for f in own for v in f[key]]) == mean
        assert all(a <= b for f in own for a, b in zip(f["labelled"], f["neurons"]))
        assert all(f["duration"] >= 240 for f in own)      # both halves hold windows of 100 s
        rates = [v for f in own for v in f["frame_rate"]]
        assert abs(np.mean(rates) / s.rate - 1) < 0.03
    assert len({f["seed"] for f in files}) == len(files) and {f["species"] for f in files} == {seed}
    for thin, whole in zip(plan(worms=0.3, seed=seed), files, strict=True):
        for k, v in thin.items():
            assert v == (whole[k][:thin["n"]] if isinstance(v, list) else whole[k]) or k == "n"


@pytest.mark.parametrize("wrong", [dict(worms=0), dict(minutes=0), dict(seed=-1), dict(workers=0),
                                   dict(sources=["kato"])])
def test_wrong_arguments_write_nothing_of_a_worm(tmp_path, wrong):
    says = "no such source" if "sources" in wrong else f"{[*wrong][0]} is out of range"
    with pytest.raises(ParameterError, match=says): write_pool(tmp_path, **wrong)
    assert {p.name for p in tmp_path.rglob("*")} <= {"SIMULATED.md"}


# ---- What is read back
def test_every_file_holds_what_was_planned(pool):
    for f, worms in of_plan(pool):
        assert len(worms) == f["n"]
        for ds in worms:
            check(ds)
            names = ds["neuron"].values[ds["labelled"].values]
            assert ds.attrs["source"] == f["source"] and set(names) <= set(NEURONS)
        assert [ds.sizes["neuron"] for ds in worms] == f["neurons"]
        named, wanted = sum(int(ds["labelled"].sum()) for ds in worms), f["labelled"]
        if f["source"] == "yemini2021": assert 0 <= named - sum(wanted) <= 2  # classes are whole
        else: assert [int(ds["labelled"].sum()) for ds in worms] == wanted


def test_traces_and_names_are_the_simulated_ones(pool):
    for f, worms in of_plan(pool):
        for ds, made in zip(worms, sp._simulate(f), strict=True):
            true = made.assign_coords(neuron=("neuron", made["identity"].values.astype(str)))
            for name in ("AVAL", "RIMR", "VB2"):
                x, y = (d["trace"].sel(neuron=name).values for d in (ds, true))
                if f["source"] == "leifer2023": x = x / 300 - 1      # and gaps are held
                if f["source"] == "flavell2023": y = (y - y.mean()) / y.std()
                assert np.mean(np.abs(x - y) < 1e-4) > 0.7
            assert np.isclose(ds.attrs["sampling_rate"], made.attrs["sampling_rate"], rtol=0.01)


def test_odd_labels_gaps_and_time(pool):
    reasons = {name: " ".join(e["reason"] for f, worms in of_plan(pool) if f["source"] == name
                              for ds in worms for e in ds.attrs["report"]) for name in POOL}
    for name, told in reasons.items():
        assert "uncertain in the file" in told
        if name == "yemini2021": continue
        assert "a class: " in told and "a number, no name" in told and "is given to neurons" in told
        assert ("the first name of a list" in told) == (name not in ("flavell2023", "leifer2023"))
    for told in ("frames are missing", "no frame has a value"): assert told in reasons["leifer2023"]
    uneven = {f["source"] for f, worms in of_plan(pool)
              if np.ptp(np.diff(worms[0]["time"].values)) > 1e-6}
    assert uneven == set(POOL) - {"yemini2021", "flavell2023"}


# ---- The same seed
def test_the_same_seed_gives_the_same_bytes_however_many_there_are(pool, tmp_path):
    sources = ["uzel2022", "yemini2021", "flavell2023", "leifer2023"]
    write_pool(tmp_path / "one", sources=sources, workers=1, **THIN)
    again, first = digests(tmp_path / "one"), digests(pool[0])
    assert all(first[k] == v for k, v in again.items() if k.name != "SIMULATED.md")
    write_pool(tmp_path / "other", sources="uzel2022", seed=1, **THIN)
    assert digests(tmp_path / "other").popitem()[1] not in first.values()
    few, more = (read_pool(write_pool(tmp_path / str(w), sources="kato2015", worms=w, minutes=0.5))
                 for w in (0.2, 0.5))
    more = {ds.attrs["subject"]: ds for ds in more}
    for ds in few: assert ds["trace"].equals(more[ds.attrs["subject"]]["trace"])


# ---- Reading many files
def test_order_and_values_do_not_depend_on_workers(pool):
    folder, paths, found = pool
    paths = paths[::-1]
    want = [ds for p in paths for ds in found[p]]
    for workers in (1, 2, 3):
        got = read_pool(map(str, paths), workers=workers)
        assert all(a.identical(b) for a, b in zip(got, want, strict=True))
    for a, b in zip(read_pool(paths, then=partial(standardise, alpha=0.2)), want, strict=True):
        assert a.identical(standardise(b, alpha=0.2))


def test_a_path_a_folder_and_none(pool):
    folder, paths, found = pool
    assert "No worm was recorded" in (folder / "SIMULATED.md").read_text()
    assert len(read_worms(folder)) == sum(map(len, found.values()))
    assert len(read_pool(paths[0])) == len(found[paths[0]]) and read_pool([]) == []
    both = read_pool([folder / "uzel2022", folder / "flavell2023"], then=_source)
    assert Counter(both) == {"uzel2022": 1, "flavell2023": 2}
    sure, unsure = (read_pool(str(paths[0]), uncertain=u)[0] for u in (False, True))
    assert int(unsure["labelled"].sum()) > int(sure["labelled"].sum())


def _source(ds): return ds.attrs["source"]
def _breaks(ds): raise ValueError("broken here")
def _breaks_ours(ds): raise RecordingError("ours", where=ds.attrs["subject"] + ", neuron AVAL")
def _dies(ds): os._exit(1)
def _stays(ds): return lambda: ds


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_name_the_file(pool, tmp_path, workers):
    paths = pool[1][:2]
    read = partial(read_pool, workers=workers)
    bad = tmp_path / "bad.json"
    bad.write_text('{"trace_array": [')
    for files in ([*paths, bad], [bad, *paths]):
        with pytest.raises(RecordingError, match="bad.json: the file is damaged"): read(files)
    with pytest.raises(ParameterError, match="there are no such data: .*none.mat"):
        read([*paths, tmp_path / "none.mat"])
    with pytest.raises(RecordingError, match=r"WT_NoStim.mat, WT_NoStim-1: .* ValueError: broken"):
        read(paths, then=_breaks)
    with pytest.raises(RecordingError, match=r"WT_NoStim.mat, WT_NoStim-1, neuron AVAL: ours"):
        read(paths, then=_breaks_ours)
    with pytest.raises(ParameterError, match="WT_NoStim.mat, WT_NoStim-1: alpha is the weight"):
        read(paths, then=partial(standardise, alpha=7))


def test_the_first_error_in_order_is_told_and_nothing_goes_on(pool, tmp_path):
    files = [tmp_path / f"{i}.json" for i in range(6)]
    for i, p in enumerate(files): p.write_text("{" + " " * 1000 * i)
    for more in [[]] * 4 + [pool[1]]:
        with pytest.raises(RecordingError, match="0.json"): read_pool([*files, *more])
        assert not multiprocessing.active_children()


def _in_daemon(paths, queue):
    try: queue.put(len(read_pool(paths)))
    except BaseException as e: queue.put(repr(e))


def test_a_process_that_dies_cannot_answer_or_may_have_no_children(pool):
    paths = pool[1][:2]
    with pytest.raises(RecordingError, match=r"WT_NoStim.mat: .* did not deliver.*workers=1"):
        read_pool(paths, then=_dies)
    with pytest.raises(RecordingError, match="WT_NoStim.mat: .* did not deliver"):
        read_pool(paths, then=_stays)
    with pytest.raises(ParameterError, match="`then` cannot be sent to another process"):
        read_pool(paths, then=lambda ds: ds)
    assert read_pool(paths, then=lambda ds: 1, workers=1) == [1, 1]
    context = multiprocessing.get_context("fork")              # a daemon may have no children
    queue = context.Queue()
    process = context.Process(target=_in_daemon, args=(paths, queue), daemon=True)
    process.start()
    assert queue.get(timeout=60) == 2
    process.join()


def _slow(ds):
    open(os.environ["POOL_PIDS"], "a").write(f"{os.getpid()}\n")
    time.sleep(60)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_a_killed_parent_leaves_no_process_behind(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("POOL_PIDS", str(tmp_path / "pids"))
    parent = multiprocessing.get_context("fork").Process(
        target=read_pool, args=(pool[1][:3],), kwargs=dict(then=_slow))
    parent.start()
    pids = until(lambda: (tmp_path / "pids").is_file() and
                 len(p := (tmp_path / "pids").read_text().split()) == 2 and p)
    parent.kill()
    parent.join()
    until(lambda: not any(map(runs, pids)))


def test_real_files(mirror):
    paths = [mirror / "kato2015" / "WT_NoStim.mat", mirror / "flavell2023" / "2022-08-02-01.json"]
    paths = [p for p in paths if p.is_file()]
    if not paths: pytest.skip("the mirror holds no real worms")
    found = read_pool(paths, then=standardise)
    want = [standardise(ds) for p in paths for ds in read_worms(p)]
    assert all(a.identical(b) for a, b in zip(found, want, strict=True))


# ---- The whole pool
@pytest.mark.slow
def test_the_full_pool_is_as_hard_as_the_published_one(tmp_path):
    published = dict(kato2015=.0137, nichols2017=.0103, skora2018=.0075, uzel2022=.0076,
                     kaplan2020=.0035, yemini2021=.0109, flavell2023=.0081, leifer2023=.0124)
    worms = read_pool(write_pool(tmp_path), then=standardise)
    assert Counter(ds.attrs["source"] for ds in worms) == {
        k: sum(s.files.values()) for k, s in POOL.items()}
    naive = {k: [] for k in POOL}
    for ds in worms:
        x, mask = windows(ds, "valid", 16)
        naive[ds.attrs["source"]].append((np.diff(x, axis=1)[:, :, mask[0] > 0] ** 2).mean())
    for k, v in published.items(): assert v / 2 < np.mean(naive[k]) < 2 * v, k
