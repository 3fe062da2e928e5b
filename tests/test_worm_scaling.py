"worm_scaling on the real worms of Kato et al. 2015, against numbers established independently."
import numpy as np
import pandas as pd
import pytest
import torch

from neurocompanion.core import ParameterError, RecordingError
from neurocompanion.recordings import read as door
from neurocompanion.recordings.sources import fetch
from neurocompanion.recordings.standard import save
from neurocompanion.recordings.worm import simulate
from neurocompanion.recordings.worm.simulate_pool import write_pool
from neurocompanion.sweeps.engines import sweep
from neurocompanion.sweeps.sweep import expand
from neurocompanion.sweeps.tables import table
from neurocompanion.worm_scaling import data, experiments, pool


def naive(worms):
    w, m = data.stack(worms, "valid", 16)
    return float((((w[:, 1:] - w[:, :-1]) ** 2) * m[:, None]).sum() / m.sum() / 100)


def test_naive_error_of_the_real_worms_and_training_never_sees_the_second_half(mirror):
    "0.0139 with statistics of the training half; the leak lowers it by a fifth."
    kato = door.read(fetch("kato2015"))
    honest = naive([data.standardise(w) for w in kato])
    leaky = naive([data.standardise(w, statistics="whole") for w in kato])
    assert honest == pytest.approx(0.0139, abs=1e-4)
    assert leaky == pytest.approx(0.0110, abs=1e-4)
    for w in kato[:2]:
        std = data.standardise(w)
        half = std.attrs["half"]
        spoilt = w.copy(deep=True)
        spoilt["trace"][w.time.values - float(w.time[0]) >= half] = 1e3
        again = data.standardise(spoilt)
        np.testing.assert_array_equal(*(data.windows(x, "train", 32)[0] for x in (std, again)))


def rows(**how):
    torch.set_num_threads(1)
    made = pd.DataFrame(experiments.run(how.pop("experiment", "data_scaling"), **how))
    return made.set_index("data_set")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROCOMPANION_CACHE", str(tmp_path / "cache"))
    pool._kept.cache_clear()
    yield tmp_path
    pool._kept.cache_clear()


def test_residual_and_history_heads_pass_the_naive_forecast_on_real_worms(mirror):
    kato = rows(source="kato2015", worms=5, hidden=64, head="change", data="real",
                epochs=12).loc["kato2015"]
    assert kato.naive_loss == pytest.approx(0.0139, abs=1e-4)
    assert kato.valid_loss < 0.95 * kato.naive_loss
    found = rows(worms=10, model="lstm", hidden=64, head="history", data="real", epochs=3)
    assert set(found.index) == {"all", "kato2015", "flavell2023"}
    assert (found.valid_loss < 0.6 * found.naive_loss).all()
    assert (found.valid_better > 0.85).all()
    weights = {s: (found.naive_loss * found.neurons)[s] for s in ("kato2015", "flavell2023")}
    together = (found.naive_loss * found.neurons)["all"]
    assert sum(weights.values()) == pytest.approx(together, rel=1e-6)


def test_the_real_pool_says_who_is_left_out(mirror, own_cache):
    worms = pool.pool("real")
    assert len(worms) == 10
    (what, why), = worms.left_out
    assert what == "flavell2023/2022-01-16-01" and why.startswith("no neuron is labelled")
    assert all(len(v) == 64 for v in experiments.inputs(data="real").values())


def test_a_pool_is_made_once_but_no_real_one_without_a_mirror(own_cache, monkeypatch):
    monkeypatch.delenv("NEUROCOMPANION_MIRROR", raising=False)
    with pytest.raises(RecordingError, match="no real recording is at hand"): pool.pool("real")
    first = pool.pool(share=0.01)
    pool._kept.cache_clear()
    monkeypatch.setattr(pool, "make_pool", None)                   # nothing may be made again
    for a, b in zip(first, pool.pool(share=0.01), strict=True):
        assert a.identical(b)


@pytest.mark.parametrize("name", ["data_scaling", "hidden_size", "cross_data_set"])
def test_the_paper_scale_has_the_papers_sizes(name):
    runs = expand(f"worm_scaling/{name}", "paper", preset="paper_faithful")
    same = dict(epochs=500, patience=50, lr=0.0, batch=64, n_train=32, n_valid=16, length=100,
                data="real", steps_per_epoch=0, statistics="whole")
    assert all(run[k] == v for run in runs for k, v in same.items())
    assert {"value"} < {run["head"] for run in runs}
    sizes = {run["worms"] for run in runs}
    assert sizes == {0} or (min(sizes), max(sizes)) == (1, 284)


def test_a_run_of_the_papers_grid_runs_on_the_simulated_sources(own_cache):
    "The last one, cut to a thin pool, two epochs and a small model."
    run = expand("worm_scaling/cross_data_set", "paper")[-1]
    small = dict(data="simulated", share=0.01, hidden=16, epochs=2, n_train=2, n_valid=2)
    found = rows(**run | small)
    assert run["source"] in found.index and np.isfinite(found.valid_loss).all()
    for wrong in dict(n_train=0), dict(epochs=0), dict(head="tail"):
        with pytest.raises(ParameterError): rows(**run | small | wrong)


def simulated_files(folder, seed, worms=2):
    for worm in simulate.worms(worms, seed=seed, duration=300):
        save(worm, folder / f"{worm.attrs['subject']}.nc")


def test_own_recordings_in_a_sweep(own_cache, monkeypatch):
    simulated_files(own_cache / "mine", 3)
    monkeypatch.chdir(own_cache)
    done = sweep("worm_scaling/leak", scale="tiny", workers=1, out="out", fixed={"data": "mine/"})
    assert not done.failed
    made = table("worm_scaling/leak", own_cache / "out")
    assert set(made.data_set) == {"all", "simulated"} and set(made.train_worms) == {2}


def test_own_files_are_known_by_folder_and_content(own_cache):
    "Two files of one name are two files, and a changed one is another pool."
    for day, seed in (("day1", 1), ("day2", 2)): simulated_files(own_cache / "own" / day, seed, 1)
    before = door.inputs(own_cache / "own")
    first = pool.pool(str(own_cache / "own"))
    assert len(before) == len(first) == 2
    simulated_files(own_cache / "own" / "day1", 7, 1)
    for p in (own_cache / "own" / "day1").glob("*.nc"):
        if "7" not in p.name: p.unlink()
    assert door.inputs(own_cache / "own") != before
    again = pool.pool(str(own_cache / "own"))                    # in the same process
    assert {w.attrs["subject"] for w in again} != {w.attrs["subject"] for w in first}


def test_own_folder_of_both_kinds(own_cache):
    place = own_cache / "own"
    simulated_files(place, 1, 1)
    simulated_files(place / ".ipynb_checkpoints", 2, 1)
    (place / "readme.txt").write_text("two worms, and more")
    alone = pool.pool(str(place))
    assert len(alone) == 1 and not any("checkpoint" in k for k in door.inputs(place))
    write_pool(place / "raw", sources="uzel2022", worms=0.2)
    assert len(pool.pool(str(place))) == 2


def test_the_leak_on_real_worms(mirror):
    "Statistics of the whole recording make every forecast look better, without any learning."
    honest, leaky = (rows(experiment="baselines", data="real", statistics=s)
                     for s in ("train", "whole"))
    assert leaky.naive_loss["kato2015"] / honest.naive_loss["kato2015"] < 0.85
    assert leaky.naive_loss["flavell2023"] / honest.naive_loss["flavell2023"] < 0.4
