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


def test_the_residual_head_passes_the_naive_forecast(kato):
    "On real worms, with little training: 0.9 of the naive error or less."
    from neurocompanion.worm_scaling.experiments import data_scaling
    torch.set_num_threads(1)
    row, = data_scaling(worms=5, hidden=64, residual=True, data="real", epochs=12)
    assert row["valid_loss"] < 0.95 * row["naive_loss"]
    assert row["naive_loss"] == pytest.approx(0.0139, abs=1e-4)
