"Estimators for one's own recordings: scikit-learn's habits, files, writers, verdicts."
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks as checks

from neurocompanion.autolfads.estimators import AutoLFADS
from neurocompanion.core import NeurocompanionError
from neurocompanion.recordings.simulate import generator
from neurocompanion.recordings.standard import save, spikes
from neurocompanion.recordings.write import result, write
from neurocompanion.sessions.estimators import SpikeForecaster
from neurocompanion.training.estimators import compared, verdict
from neurocompanion.worm_gnn.estimators import StateDecoder
from neurocompanion.worm_scaling.estimators import Forecaster
from neurocompanion.zebrafish.estimators import TraceForecaster, VideoForecaster

SMALL = {AutoLFADS: dict(members=2, epochs=2, generations=1, generator=8, factors=3,
                         engine="serial"),
         Forecaster: dict(hidden=8, horizon=2, context=10, epochs=1),
         StateDecoder: dict(model="mlp", epochs=1, hidden=4),
         TraceForecaster: dict(horizon=2, hidden=4, epochs=1),
         SpikeForecaster: dict(width=4, epochs=1),
         VideoForecaster: dict(horizon=2, width=4, resample=1, steps=2, radius=2.0)}
EACH = pytest.mark.parametrize("kind", SMALL, ids=lambda k: k.__name__)


def data_for(kind):
    "What `fit` takes, as arrays."
    x = generator(0).normal(size=(320, 5)).cumsum(0)
    if kind in (Forecaster, TraceForecaster): return x,
    if kind is VideoForecaster:                                   # two cells, each with a rhythm
        film = 10 + generator(0).random((60, 1, 8, 8))
        film[:, 0, 1:4, 1:4] += 5 * np.sin(np.arange(60) / 4)[:, None, None]
        film[:, 0, 5:8, 5:8] += 5 * np.cos(np.arange(60) / 7)[:, None, None]
        return film,
    if kind is StateDecoder: return x, np.where(x[:, 0] > x[:, 0].mean(), "up", "down")
    return generator(0).poisson(0.4, (15, 12, 6)),


@EACH
@pytest.mark.parametrize("check", ["get_params_invariance", "set_params",
                                   "no_attributes_set_in_init",
                                   "parameters_default_constructible"])
def test_scikit_learns_own_checks(kind, check):
    getattr(checks, f"check_{check}")(kind.__name__, kind())


@EACH
def test_fit_changes_no_parameter_and_a_clone_knows_nothing(kind, one_thread):
    e, data = kind(**SMALL[kind]), data_for(kind)
    before = e.get_params()
    assert e.fit(*data) is e and e.get_params() == before
    other = clone(e)
    assert other.get_params() == before
    with pytest.raises(NotFittedError, match="has not been fitted"): other.predict(data[0])


@EACH
def test_the_same_seed_gives_the_same_and_a_file_gives_it_back(kind, tmp_path, one_thread):
    data = data_for(kind)
    a, b = (kind(**SMALL[kind]).fit(*data) for _ in range(2))
    x = data[0][:, :10] if kind is SpikeForecaster else data[0][:30]
    np.testing.assert_array_equal(a.predict(x), b.predict(x))
    again = kind.load(a.save(tmp_path / "a.pt"))
    np.testing.assert_array_equal(again.predict(x), a.predict(x))
    with pytest.raises(NeurocompanionError, match="readable checkpoint"):
        (tmp_path / "b.pt").write_bytes(b"no zip")
        kind.load(tmp_path / "b.pt")


@pytest.mark.parametrize("wrong, says", [
    (lambda x: x[:3], "too few trials"), (lambda x: 0 * x, "no unit fires"),
    (lambda x: x - 1, "not counts"), (lambda x: x + 0.5, "not counts"),
    (lambda x: np.where(x > 1, np.nan, x), "cannot be"),
    (lambda x: np.repeat(x, 40, 2), "transposed"), (lambda x: x[0, 0], "wrong shape|order")])
def test_spikes_that_cannot_be_used(wrong, says):
    with pytest.raises((NeurocompanionError, ValueError), match=says):
        AutoLFADS(**SMALL[AutoLFADS]).fit(wrong(data_for(AutoLFADS)[0]))


def test_intervals_cover_a_known_difference():
    "Of 200 pairs of methods that differ by 0.1, about 95 % of the intervals hold it."
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        common = rng.normal(0, 1, 40)
        a, b = common + rng.normal(0.1, 0.2, 40), common + rng.normal(0, 0.2, 40)
        row = compared({"a": (a, np.ones(40)), "b": (b, np.ones(40))}, "a", draws=400).iloc[1]
        hits += row.lead_low <= 0.1 <= row.lead_high
    assert 0.9 <= hits / 200 <= 0.985


@pytest.mark.parametrize("lead, says", [((0.1, 0.2), "beats b"), ((-0.1, 0.1), "cannot be told"),
                                        ((-0.2, -0.1), "less good than b")])
def test_a_verdict_follows_its_interval(lead, says):
    table = compared({"a": ([1.0] * 5, [1.0] * 5), "b": ([1.0] * 5, [1.0] * 5)}, "a")
    table.loc[1, ["lead_low", "lead_high"]] = lead
    assert says in verdict(table, "trials", "bits")


def rates():
    ds = spikes(generator(0).poisson(0.4, (6, 10, 4)), bin_size=0.02, subject="m", source="made up")
    r = ds.spikes.values / 0.02
    return result({"rate": (ds.spikes.dims, r, {"units": "Hz"})}, dict(ds.coords), ds, kind="rates",
                  method="none", settings={}, verdict="Made up.")


@pytest.mark.parametrize("suffix", [".nc", ".csv", ".parquet", ".h5"])
def test_what_is_written_is_what_is_read(suffix, tmp_path):
    made = rates()
    path = write(made, tmp_path / f"r{suffix}", like="lfads-torch" if suffix == ".h5" else None)
    if suffix == ".nc":
        with xr.open_dataset(path, engine="h5netcdf") as f:
            xr.testing.assert_allclose(f.rate, made.rate)
            assert f.attrs["verdict"] == "Made up."
    elif suffix == ".h5":
        import h5py
        with h5py.File(path) as f: np.testing.assert_allclose(f["output_params"], made.rate * 0.02)
    else:
        read = pd.read_parquet if suffix == ".parquet" else lambda p: pd.read_csv(p, comment="#")
        np.testing.assert_allclose(read(path).rate, made.rate.values.ravel(), rtol=1e-5)
        if suffix == ".csv": assert "# verdict: Made up." in path.read_text()


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(xr.Dataset, "to_netcdf", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError): write(rates(), tmp_path / "r.nc")
    assert not [*tmp_path.iterdir()]


def test_rates_go_back_into_the_nwb_file(tmp_path):
    import pynwb
    path = write(rates(), tmp_path / "r.nwb")
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        module = io.read().processing["neurocompanion"]
        assert module["rate"].data.shape == (60, 4) and "Made up." in module.description


def test_forecasts_and_states_go_into_nwb_files(tmp_path):
    import pynwb
    x = data_for(Forecaster)[0]
    f = Forecaster(**SMALL[Forecaster]).fit(x).forecast()
    d = StateDecoder(**SMALL[StateDecoder]).fit(*data_for(StateDecoder))
    made = d.states(x)
    for name, ds in ("f.nwb", f), ("s.nwb", made): write(ds, tmp_path / name)
    with pynwb.NWBHDF5IO(str(tmp_path / "f.nwb"), "r") as io:
        module = io.read().processing["neurocompanion"]
        np.testing.assert_allclose(module["forecast"].data, f.forecast)
        np.testing.assert_allclose(module["forecast"].timestamps, f.start)
        assert f.neuron.values[0] in module["truth"].comments
    with pynwb.NWBHDF5IO(str(tmp_path / "s.nwb"), "r") as io:
        told = io.read().processing["neurocompanion"]["state"].to_dataframe()
    state, time = made.state.values, made.time.values
    for row in told.itertuples():
        assert set(state[(time >= row.start_time) & (time < row.stop_time)]) == {row.label}


def test_a_saved_recording_gives_the_same_as_the_one_in_memory(tmp_path, one_thread):
    x = data_for(AutoLFADS)[0]
    ds = spikes(x, bin_size=0.01, subject="array", source="array")
    save(ds, tmp_path / "a.nc")
    a, b = (AutoLFADS(**SMALL[AutoLFADS]).fit(v).rates() for v in (x, tmp_path / "a.nc"))
    np.testing.assert_array_equal(a.rate, b.rate)
