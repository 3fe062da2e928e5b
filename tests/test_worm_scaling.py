"worm_scaling on the real worms of Kato et al. 2015, against numbers established independently."
import numpy as np
import pytest
import torch

from neurocompanion.worm_scaling import data, models


@pytest.fixture(scope="module")
def kato(mirror):
    from neurocompanion.recordings.sources import fetch
    from neurocompanion.recordings.worm import read_worms
    return read_worms(fetch("kato2015"))


def naive(worms):
    w, m = data.stack(worms, "valid", 16)
    return float((((w[:, 1:] - w[:, :-1]) ** 2) * m[:, None]).sum() / m.sum() / 100)


def test_naive_error_of_the_real_worms(kato):
    "0.0139 with statistics of the training half; the leak lowers it by a fifth."
    honest = naive([data.standardise(w) for w in kato])
    leaky = naive([data.standardise(w, statistics="whole") for w in kato])
    assert honest == pytest.approx(0.0139, abs=1e-4)
    assert leaky == pytest.approx(0.0110, abs=1e-4)


def test_training_never_sees_the_second_half(kato):
    for w in kato[:2]:
        std = data.standardise(w)
        half = std.attrs["half"]
        spoilt = w.copy(deep=True)
        spoilt["trace"][w.time.values - float(w.time[0]) >= half] = 1e3
        again = data.standardise(spoilt)
        np.testing.assert_array_equal(*(data.windows(x, "train", 32)[0] for x in (std, again)))


@pytest.mark.parametrize("hidden, expected", [(512, 573_742)])
def test_published_parameter_count(hidden, expected):
    assert sum(p.numel() for p in models.Linear(hidden).parameters()) == expected


def rows(**how):
    import pandas as pd

    from neurocompanion.worm_scaling import experiments
    torch.set_num_threads(1)
    made = pd.DataFrame(experiments.run(how.pop("experiment", "data_scaling"), **how))
    return made.set_index("data_set")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    "A pool made for this test, not one that lies about."
    from neurocompanion.worm_scaling import pool
    monkeypatch.setenv("NEUROCOMPANION_CACHE", str(tmp_path / "cache"))
    pool._pool.cache_clear()
    yield tmp_path
    pool._pool.cache_clear()


def test_the_residual_head_passes_the_naive_forecast_on_kato(mirror):
    "On the worms of Kato et al., with little training: less than the naive error of .0139."
    kato = rows(source="kato2015", worms=5, hidden=64, head="change", data="real",
                epochs=12).loc["kato2015"]
    assert kato.naive_loss == pytest.approx(0.0139, abs=1e-4)
    assert kato.valid_loss < 0.95 * kato.naive_loss


def test_the_history_head_passes_naive_on_every_real_data_set(mirror):
    found = rows(worms=10, model="lstm", hidden=64, head="history", data="real", epochs=3)
    assert set(found.index) == {"all", "kato2015", "flavell2023"}
    assert (found.valid_loss < 0.6 * found.naive_loss).all()
    assert (found.valid_better > 0.85).all()
    weights = {s: (found.naive_loss * found.neurons)[s] for s in ("kato2015", "flavell2023")}
    together = (found.naive_loss * found.neurons)["all"]
    assert sum(weights.values()) == pytest.approx(together, rel=1e-6)


def test_the_real_pool_says_who_is_left_out(mirror, own_cache):
    from neurocompanion.worm_scaling import pool
    worms = pool.pool("real")
    assert len(worms) == 10
    assert pool.left_out("real") == [("2022-01-16-01", "flavell2023", "no neuron is labelled")]
    assert all(len(v) == 64 for v in pool.inputs("real").values())


def test_without_a_mirror_no_real_worm_is_at_hand(own_cache, monkeypatch):
    from neurocompanion.core import RecordingError
    from neurocompanion.worm_scaling import pool
    monkeypatch.delenv("NEUROCOMPANION_MIRROR", raising=False)
    with pytest.raises(RecordingError, match="no real worm is at hand"): pool.pool("real")
    assert pool.inputs("real") == {}


def test_a_pool_is_made_once(own_cache, monkeypatch):
    from neurocompanion.worm_scaling import pool
    first = pool.pool(share=0.01)
    pool._pool.cache_clear()
    monkeypatch.setattr(pool, "make_pool", None)                   # nothing may be made again
    for a, b in zip(first, pool.pool(share=0.01), strict=True):
        assert a.identical(b)


@pytest.mark.parametrize("name", ["data_scaling", "hidden_size", "cross_data_set"])
def test_the_paper_scale_is_the_papers_protocol(name):
    from neurocompanion.sweeps.sweep import expand
    runs = expand(f"worm_scaling/{name}", "paper")
    same = dict(epochs=500, patience=50, lr=0.0, batch=64, n_train=32, n_valid=16, length=100,
                data="real", steps_per_epoch=0, statistics="train")
    assert all(run[k] == v for run in runs for k, v in same.items())
    assert {"value"} < {run["head"] for run in runs}
    sizes = {run["worms"] for run in runs}
    assert sizes == {0} or (min(sizes), max(sizes)) == (1, 284)


def test_the_papers_grid_runs_where_the_files_are(own_cache):
    "Its largest run, with all but its size: every worm at hand, cut to two epochs."
    from neurocompanion.sweeps.sweep import expand
    run = expand("worm_scaling/cross_data_set", "paper")[-1]
    small = dict(data="simulated", share=0.01, hidden=16, epochs=2, n_train=2, n_valid=2)
    keep = {k: v for k, v in (run | small).items() if k not in ("experiment", "seed")}
    found = rows(experiment="cross_data_set", **keep)
    assert run["source"] in found.index and np.isfinite(found.valid_loss).all()


def test_own_recordings_in_a_sweep(own_cache):
    "One file and one line."
    from neurocompanion.recordings import simulate
    from neurocompanion.recordings.standard import save
    from neurocompanion.sweeps.engines import sweep
    from neurocompanion.sweeps.tables import table
    for worm in simulate.worms(2, seed=3, duration=300):
        save(worm, own_cache / "mine" / f"{worm.attrs['subject']}.nc")
    done = sweep("worm_scaling/leak", scale="tiny", workers=1, out=own_cache / "out",
                 fixed={"data": str(own_cache / "mine")})
    assert not done.failed
    made = table("worm_scaling/leak", own_cache / "out")
    assert set(made.data_set) == {"all", "simulated"} and set(made.train_worms) == {2}


def test_the_leak_on_real_worms(mirror):
    "Statistics of the whole recording make every forecast look better, without any learning."
    honest, leaky = (rows(experiment="baselines", data="real", statistics=s)
                     for s in ("train", "whole"))
    assert leaky.naive_loss["kato2015"] / honest.naive_loss["kato2015"] < 0.85
    assert leaky.naive_loss["flavell2023"] / honest.naive_loss["flavell2023"] < 0.4
