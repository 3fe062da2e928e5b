"Experiments of the volumetric paper: what is trained on, what is scored, what is said of mistakes."
import warnings
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pretend
import pytest
import torch

from neurocompanion.core import NeurocompanionError, home
from neurocompanion.recordings.video.simulate_fish import benchmark_fish
from neurocompanion.recordings.standard import save as save_recording
from neurocompanion.recordings.video.simulate_fish import zapbench_folder
from neurocompanion.sweeps.paper import names, uses
from neurocompanion.sweeps.sweep import expand, load
from neurocompanion.training.rehearsal import Rehearsal, part_of
from neurocompanion.zebrafish import experiments as ex
from neurocompanion.zebrafish import fish as fs
from neurocompanion.zebrafish import methods as me
from neurocompanion.zebrafish.data import mean_error
from neurocompanion.zebrafish.setting import Setting

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = dict(data="simulated", length=0.12, cells=30, horizon=4, steps=2, checks=1,
            batch=2, trace_epochs=1, every=8, longest=8, most=8, width=4)


@pytest.fixture(scope="module")
def small():
    s = Setting(**TINY)
    return s, fs.simulated(s)


def test_splits_do_not_overlap_and_the_held_out_condition_is_not_learned_from(small):
    s, fish = small
    train, valid = me.starts(s, fish)
    span = lambda at: set(np.concatenate([np.arange(a, a + s.context + s.horizon) for a in at]))
    seen = lambda at, c, h: {int(t) for a in at for t in range(a + c, a + c + h)}
    taxis = set(range(*fish.splits["taxis"]["held out"]))
    test = np.concatenate([*me.asked_windows(s, fish).values()])
    assert not span(train) & taxis and not span(valid) & taxis
    forecast = [seen(at, s.context, s.horizon) for at in (train, valid, test)]
    assert not forecast[0] & forecast[1] and not forecast[0] & forecast[2]
    assert not forecast[1] & forecast[2]


@pytest.mark.parametrize("model", ["linear", "tsmixer", "tide", "evoked"])
def test_test_frames_change_no_trace_model(small, model):
    s, fish = small
    other = fish.trace.copy()
    for p in fish.splits.values(): other[slice(*p.get("test", p.get("held out")))] += 3
    at = np.concatenate([v[:2] for v in me.windows(s.context, s.horizon, splits=fish.splits,
                                                   longest=s.longest)["train"].values()])
    a, b = (me.forecaster(model, s, f)[0](at) for f in (fish, fish._replace(trace=other)))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("model", ["linear", "tsmixer", "timemix", "tide"])
def test_trace_models_train_and_forecast_on_the_best_device(small, model):
    s, fish = small
    at = me.asked_windows(s, fish)["gain"]
    here, _, _, net = me.forecaster(model, s, fish)
    assert next(net.parameters()).is_cpu
    with pretend.accelerator():
        there, _, _, net = me.forecaster(model, s, fish)
        assert next(net.parameters()).device == pretend.PLACE
        np.testing.assert_allclose(there(at), here(at), atol=2e-3)


def test_errors_have_the_recordings_units_and_the_evoked_forecast_none_where_it_is_all(small):
    s, fish = small
    forecast = lambda at: np.zeros((len(at), s.horizon, fish.trace.shape[1]))
    once, thrice = (mean_error(me.judged(forecast, s, fish._replace(unit=u))) for u in (1, 3))
    assert thrice == pytest.approx(3 * once)
    phase = me.tr.stimulus_phase(fish.stimulus, fish.condition, longest=99)
    answer = np.stack([np.sin(phase + i) for i in range(3)], 1).astype(np.float32)
    forecast = me.forecaster("evoked", s, fish._replace(trace=answer))[0]
    at = me.asked_windows(s, fish)["dark"]
    truth = np.stack([answer[a + s.context:a + s.context + s.horizon] for a in at])
    np.testing.assert_allclose(forecast(at), truth, atol=1e-6)


@pytest.mark.parametrize("more", [
    dict(masked=True), dict(models="unet_residual"), dict(with_valid=True)])
def test_every_variant_goes_the_whole_way_and_other_specimens_take_turns(more):
    mixed = me._Mixed([[1, 2, 3], ["a"]])
    assert len(mixed) == 3 and list(mixed) == [1, "a", 2]
    tiny = {k: v for k, v in TINY.items() if k != "trace_epochs"}
    t = pd.DataFrame(ex.run("objective", **tiny, **more))
    assert t[t.what == "model"].test.notna().all() and not set(t) & set(names(Setting))


@pytest.mark.parametrize("coarser, resample", [(1, 3), (4, 1)])
def test_every_resolution_forecasts_the_fine_film(coarser, resample):
    s = Setting(**TINY, coarser=coarser, fine=True, resample=resample, flat=resample - 1)
    fish = fs.load(s)
    assert fish.trace.shape[1] == 30 and fish.cells.shape == (4, 32, 32)
    assert fish.video.shape[2:] == (32 // coarser, 32 // coarser) and fish.target.shape[2] == 32
    out = me.unet(s)(torch.zeros(1, 4, *fish.video.shape[1:]), torch.ones(1))
    assert out.shape[2:] == fish.target.shape[1:]


def public(top, T):
    "A tiny bucket of three cells, of which the second is cut off, in T frames."
    zarr = pytest.importorskip("zarr")
    rng = np.random.default_rng(0)
    cells = np.zeros((8, 64, 2), np.uint32)                         # x y z
    cells[2:4, 10:14], cells[5:7, 30:34] = 1, 3
    film = rng.random((8, 64, 2, T), np.float32)
    half = film.reshape(4, 2, 32, 2, 2, T).mean((1, 3))
    for place, array in {"segmentation": cells, "df_over_f_xyz_chunked/s0": film,
                         "df_over_f_xyz_chunked/s1": half, "traces": rng.random((T, 3), np.float32),
                         "stimuli_features": np.zeros((T, 26), np.float32)}.items():
        zarr.save_array(str(top / place), array)


def test_the_public_layout_is_read_where_it_lies(tmp_path, monkeypatch):
    top, T = tmp_path / "zapbench", 7879
    public(top, T)
    monkeypatch.setenv("NEUROCOMPANION_MIRROR", str(tmp_path))
    monkeypatch.setenv("NEUROCOMPANION_CACHE", str(tmp_path / "cache"))
    s = Setting(data="zapbench", coarser=2, fine=True, horizon=32, longest=256)
    fish = fs.load(s)
    assert fish.video.shape == (T, 2, 28, 4) and fish.target.shape == (T, 2, 56, 8)
    assert fish.cells.shape == (2, 56, 8) and fish.trace.shape == (T, 2)
    assert {k: len(v) for k, v in me.asked_windows(s, fish).items()}["taxis"] == 368
    x, lead, y = next(iter(me.samples(s, fish, 8)[0]))
    assert x.shape == (4, 4, 2, 28, 4) and y.shape == (4, 2, 56, 8)
    coarse = fs.load(replace(s, fine=False))
    assert coarse.cells.shape == coarse.video.shape[1:] and coarse.trace.shape == (T, 2)
    monkeypatch.setattr(fs, "trace_blocks", list)                   # taken from the film once
    again = fs.load(replace(s, fine=False, data=str(top)))          # a folder of one's own
    np.testing.assert_array_equal(again.trace, coarse.trace)
    np.testing.assert_allclose(coarse.trace, fs.extract_traces(
        coarse.video[:], coarse.cells), atol=1e-6)


def test_a_recording_of_another_length_has_no_conditions(tmp_path, monkeypatch):
    public(tmp_path / "other", 400)
    monkeypatch.setenv("NEUROCOMPANION_CACHE", str(tmp_path / "cache"))
    s = Setting(data=str(tmp_path / "other"), coarser=1, horizon=8, trace_epochs=1, models="linear")
    fish = fs.load(s)
    assert fish.splits == fs.undivided(400) and not fish.condition.any()
    assert {r["condition"] for r in ex.forecast(s) if r["what"] == "lead"} == {"all"}


def test_a_film_of_ones_own(tmp_path):
    ds = benchmark_fish(30, scale=0.12, shape=(4, 32, 32), **fs.OPTICS)
    save_recording(ds, tmp_path / "mine.nc")
    how = {**TINY, "models": "linear,last", "data": str(tmp_path / "mine.nc")}
    t = pd.DataFrame(ex.run("forecast", **how))
    assert t[t.what == "lead"].condition.nunique() == 9
    assert list(ex.inputs("forecast", **how)) == ["mine.nc"]


@pytest.mark.parametrize("wrong, said", [
    (dict(steps=0), "steps is out of range"), (dict(data="nowhere"), "no such data"),
    (dict(resample=0), "too few resamplings"), (dict(subject="subject_1"), "no such subject")])
def test_what_cannot_be(wrong, said):
    with pytest.raises(NeurocompanionError, match=said): ex.run("forecast", **{**TINY, **wrong})


def test_sweeps_ask_for_what_there_is():
    for spec in map(load, (home() / "nbs/zebrafish/sweeps").glob("*.yaml")):
        for p in (p for scale in spec.scales for p in expand(spec, scale)):
            assert me.listed(Setting(**p))
        assert all(p["data"] == "simulated" for p in expand(spec, "tiny"))


@pytest.mark.parametrize("name", ["headline", "context", "views", "pretraining", "cost",
                                  "light_sheet", "clusters"])
def test_tiny_sweeps_run(name):
    p = expand(f"zebrafish/{name}", "tiny")[-1]
    rows = pd.DataFrame(ex.run(**p))
    assert len(rows) and not set(rows) & set(names(Setting))


# ---- the paper's own sizes
@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    "A cache for this module."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("NEUROCOMPANION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("name", sorted(p.stem for p in (
    home() / "nbs/zebrafish/sweeps").glob("*.yaml")))
def test_a_run_of_every_paper_grid_goes_the_whole_way_in_small(name, cache):
    s = Setting(**expand(f"zebrafish/{name}", "paper")[-1])
    asked = {k: v for k, v in {**asdict(s), **s.rehearsed(small=True)}.items()
             if k in uses(Setting, s.experiment)}
    with Rehearsal(most=1) as r, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)                # few windows: empty means
        rows = pd.DataFrame(ex.EXPERIMENTS[s.experiment](Setting(**asked)))
    trained = set(me.listed(s)) & {"linear", "tsmixer", "timemix", "tide"}
    steps = s.trace_epochs * me.LOOK * len(trained) if s.experiment in ("forecast", "light_sheet",
                                                                        "clusters", "cost") else 0
    if s.experiment not in ("views", "clusters", "cost"):
        steps += s.steps * len(set(me.listed(s)) & {*me.NETS})
    if s.specimens: steps += s.before
    assert len(rows) and r.spent[1] == steps                            # those of a whole run


def test_a_rehearsal_takes_a_part_of_the_frame_and_counts_the_whole(cache, monkeypatch):
    s = Setting(data=str(zapbench_folder(small=True)), coarser=4, fine=True, horizon=32,
                longest=256, width=4, super_width=4, resample=1, batch=1)
    fish = fs.load(s)
    monkeypatch.setattr(me, "ROOM", me.step_bytes(me.unet(s), fish.video.shape[1:])["most"] // 3)
    assert me.portion(s, fish) == (fish, 1)
    done = []
    with Rehearsal(lambda: (1.0 * len(done),)) as r:
        part, many = me.portion(s, fish)
        with part_of(many): done += [0] * 3
    assert r.memory > 3 * me.ROOM - 3 and r.spent[0] == pytest.approx(3 * many)
    assert part.video.shape == (7879, 4, 6, 6) and many == pytest.approx(14 * 8 / 36)
    assert part.target.shape[1:] == part.cells.shape == (4, 24, 24)
    np.testing.assert_array_equal(part.video[3], fish.video[3][:, 4:10, 1:7])
    there = np.unique(part.cells[part.cells > 0])
    whole = [n for n in there if (part.cells == n).sum() == (fish.cells == n).sum()]
    at = np.searchsorted(there, whole)
    here = np.stack([part.target[:12][:, part.cells == n].mean(1) for n in whole], 1)
    assert len(whole) > 2
    np.testing.assert_allclose(part.trace[:12, at], here, atol=1e-5)


def test_the_real_recordings(mirror):
    s = Setting(data="real", longest=8)
    fish = fs.light_sheet(s)
    assert fish.video.shape == (240, 2, 38, 43) and 20 < fish.trace.shape[1] < 100
    for subject, shape in (("subject_12", (640, 115)), ("subject_15", (600, 99))):
        assert fs.clusters(replace(s, subject=subject)).trace.shape == shape
