"Decoding: the benchmark's numbers, scikit-learn's ridge, and that test trials stay out."
import re

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV

from neurocompanion.autolfads import decoding as D
from neurocompanion.core import ParameterError
from neurocompanion.training.metrics import pseudo_r2, relative_pseudo_r2


@pytest.fixture
def data():
    "Rates that lead behaviour by three bins.  # trial time unit"
    rng = np.random.default_rng(0)
    rates = np.cumsum(rng.standard_normal((30, 40, 12)), 1) * 0.1
    behaviour = np.full((30, 40, 2), np.nan)
    behaviour[:, 3:] = (rates @ rng.standard_normal((12, 2)))[:, :-3]
    return rates, behaviour + 0.2 * rng.standard_normal(behaviour.shape)


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b))


# ---------------------------------------------------------------- the benchmark's numbers
def test_golden_velocity_psth_and_speed(gold):
    args = gold["pred"], gold["beh_nan"], gold["pred"], gold["beh"]
    assert D.velocity_r2(*args, gold["dm"], gold["dm"]) == pytest.approx(gold["out_vel"], abs=1e-10)
    one = D.velocity_r2(gold["pred"], gold["beh"], gold["pred"], gold["beh"], alpha=1e-2)
    assert one == pytest.approx(gold["out_vel1"], abs=1e-10)


def test_golden_psth(gold):
    for condition in (np.arange(24) % 4, list(np.arange(24) % 4)):
        r = D.psth_r2(gold["pred"], gold["psth"], condition)
        assert r == pytest.approx(gold["out_psth"], abs=1e-10)


def test_golden_speed(gold):
    bdm, spikes = gold["bdm"], gold["sp_nan"]
    condition = np.unique(bdm[:, :3], axis=0, return_inverse=True)[1].ravel()
    epoch = np.isfinite(spikes).all(-1)
    hidden = np.where(epoch[..., None], gold["pred"], np.nan)
    for rates, when in ((gold["pred"], spikes), (gold["pred"], epoch), (hidden, None)):
        r = D.speed_interval_correlation(rates, bdm[:, -1], condition, when)
        assert np.nanmean(r) == pytest.approx(gold["out_tp"], abs=1e-10)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bins, units", [(211, 8), (60, 45), (30, 60)])
def test_velocity_is_scikit_learns(seed, bins, units):
    "Any number of bins, folds of unequal size, more units than bins of a fold."
    rng = np.random.default_rng(seed)
    X, U = rng.gamma(2, 1, (2, bins, units))
    W = rng.standard_normal((units, 3))
    Y, V = X @ W + rng.standard_normal((bins, 3)), U @ W + rng.standard_normal((bins, 3))
    Y[rng.random(bins) < 0.1] = np.nan
    ok = ~np.isnan(Y[:, 0])
    ref = GridSearchCV(Ridge(), {"alpha": np.logspace(-4, 0, 9)}).fit(X[ok], Y[ok])
    got = D.velocity_r2(X, Y, U, V)
    if units < 40: assert got == pytest.approx(ref.score(U, V), abs=1e-10)
    np.testing.assert_allclose(got, ref.score(U, V), atol=1e-7)


# ---------------------------------------------------------------- ridge with delay
@pytest.mark.parametrize("alpha", [0.0, 1e-3, 1.0, 50.0])
def test_ridge_closed_form(data, alpha):
    rates, behaviour = data
    d = D.fit_decoder(rates, behaviour, alpha=alpha, delay=3)
    X, Y = rates[:, :-3].reshape(-1, 12), behaviour[:, 3:].reshape(-1, 2)
    ref = Ridge(alpha=alpha).fit(X, Y)
    np.testing.assert_allclose(d.weight, ref.coef_.T, atol=1e-9)
    np.testing.assert_allclose(d.bias, ref.intercept_, atol=1e-9)
    assert d.score(rates, behaviour) == pytest.approx(r2_score(Y, ref.predict(X)), abs=1e-10)
    assert np.isnan(d.predict(rates)[:, :3]).all()


@pytest.mark.parametrize("lead", [-4, 0, 5])
def test_finds_the_delay(lead):
    rng = np.random.default_rng(1)
    rates = np.cumsum(rng.standard_normal((20, 50, 6)), 1)
    behaviour = D._delayed(rates, lead) @ rng.standard_normal((6, 1))
    d = D.fit_decoder(rates, behaviour, delay=range(-6, 7))
    assert d.delay == lead and d.score(rates, behaviour) > 0.999999
    assert d.scores.shape == (13, 9)


def test_folds_hold_whole_trials():
    "Trials that are exact copies of themselves would be told apart only if they were cut."
    rng = np.random.default_rng(2)
    rates = np.repeat(rng.standard_normal((10, 1, 40)), 30, 1)      # constant within a trial
    behaviour = np.repeat(rng.standard_normal((10, 1, 1)), 30, 1)   # nothing to learn
    assert D.fit_decoder(rates, behaviour, alpha=[1e-6, 1e-5]).scores.max() < 0.2
    r = D.cross_decode(rates, behaviour, alpha=[1e-3, 1e-1])        # of trials that were left out
    assert r.shape == (5, 1) and r.mean() < 0
    assert D.fit_decoder(rates, behaviour, alpha=1e-3).score(rates, behaviour) > 0.3


def test_mask_and_nan_leave_bins_out(data):
    rates, behaviour = data
    mask = np.zeros(rates.shape[:2], bool); mask[:, 5:30] = True
    a = D.fit_decoder(rates, behaviour, delay=3, mask=mask)
    hidden = np.where(mask[..., None], behaviour, np.nan)
    assert same(a, D.fit_decoder(rates, hidden, delay=3))
    broken = np.where(np.roll(mask, -3, 1)[..., None], rates, np.nan)
    assert same(a, D.fit_decoder(broken, hidden, delay=3))


@pytest.mark.parametrize("call, words", [
    (lambda r, b: D.fit_decoder(r, b[:, :-1]), "do not belong together"),
    (lambda r, b: D.fit_decoder(r, b, delay=[]), "delay is not"),
    *[(lambda r, b, a=a: D.fit_decoder(r, b, alpha=a), "alpha is not a penalty")
      for a in (np.nan, [])],
    (lambda r, b: D.fit_decoder(r, b * np.nan), "nothing to fit"),
    (lambda r, b: D.fit_decoder(r, b, folds=1), "these folds cannot be made"),
    (lambda r, b: D.fit_decoder(r, b, mask=np.ones((3, 3))), "the mask does not fit"),
    (lambda r, b: D.fit_decoder(r, np.ones_like(b)), "Is the behaviour constant?"),
    (lambda r, b: D.velocity_r2(r, b, r, b, np.zeros((30, 2), bool), np.ones((30, 2), bool)),
     "nothing to fit"),
    (lambda r, b: D.velocity_r2(r, b, r, b, np.ones((30, 2)) * 0.5), "train_mask does not fit"),
    (lambda r, b: D.fit_decoder("rates", b), "not an array of numbers")])
def test_errors(data, call, words):
    with pytest.raises(ParameterError, match=words): call(*data)


# ---------------------------------------------------------------- PSTHs
def test_psth_r2_of_known_and_unknown_bins(gold):
    label = np.arange(24) % 4
    want = r2_score(np.concatenate(gold["psth"])[~np.isnan(gold["psth"]).any(-1).ravel()],
                    np.concatenate([gold["pred"][label == c].mean(0) for c in range(4)])[
                        ~np.isnan(gold["psth"]).any(-1).ravel()])
    assert D.psth_r2(gold["pred"], gold["psth"], label) == pytest.approx(want, abs=1e-10)
    holes = np.where(np.arange(20)[:, None] == 2, np.nan, gold["pred"])
    with pytest.raises(ParameterError, match="NaN"): D.psth_r2(holes, gold["psth"], label)


# ---------------------------------------------------------------- pseudo-R²
def test_bootstrap_draws_are_scores_of_drawn_trials():
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(-1, 0.7, (12, 15, 5)))
    spikes = rng.poisson(rate).astype(float)
    spikes[rng.random(spikes.shape) < 0.1] = np.nan
    other = rate * np.exp(rng.normal(0, 0.3, rate.shape))
    draws = np.random.default_rng(7).multinomial(12, [1 / 12] * 12, 40)
    rows = [np.repeat(np.arange(12), t) for t in draws]
    for ref, score in ((None, lambda i: pseudo_r2(rate[i], spikes[i], per_neuron="each")),
                       (other, lambda i: relative_pseudo_r2(rate[i], other[i], spikes[i], "each"))):
        b = D.bootstrap_pseudo_r2(rate, spikes, ref, resamples=40, seed=7)
        each = np.array([score(i) for i in rows])
        np.testing.assert_allclose(b.value, score(slice(None)), atol=1e-12)
        limits = np.quantile(each, [0.025, 0.975], axis=0)
        np.testing.assert_allclose([b.low, b.high], limits, atol=1e-10)
        np.testing.assert_allclose(b.above, (each > 0).mean(0))


# ---------------------------------------------------------------- speed
def test_speed_scales_and_gaps_and_its_correlation_within_conditions():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 30, 5))
    v = D.neural_speed(x)
    np.testing.assert_allclose(D.neural_speed(2 * x + 3, bin_size=0.5), 4 * v)
    q, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    np.testing.assert_allclose(D.neural_speed(x @ q), v)
    when = np.ones((4, 30), bool); when[:, 10:20] = False
    steps = np.linalg.norm(np.diff(x, axis=1), axis=-1)
    np.testing.assert_allclose(D.neural_speed(x, when), np.c_[steps[:, :9], steps[:, 20:]].mean(1))
    with pytest.raises(ParameterError, match="trial 2"):
        x[2, 3] = np.nan; D.neural_speed(x, when)
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((30, 12, 4)), rng.random(30)
    label = np.arange(30) % 3
    v = D.neural_speed(x)
    want = [np.corrcoef(v[label == k], t[label == k])[0, 1] for k in range(3)]
    np.testing.assert_allclose(D.speed_interval_correlation(x, t, label), want)
    alone = np.r_[label[:-1], 9]                                           # one trial
    assert np.isnan(D.speed_interval_correlation(x, t, alone)).tolist() == [False] * 3 + [True]
    assert np.isnan(D.speed_interval_correlation(x[:1], t[:1])).all()


# ---------------------------------------------------------------- what may be given
def small(seed=0, trials=24):
    rng = np.random.default_rng(seed)
    x = rng.gamma(2, 1, (trials, 10, 5))
    return x, x @ rng.standard_normal((5, 2)) + 0.1 * rng.standard_normal((trials, 10, 2))


def test_tensors_that_carry_gradients():
    import torch
    (x, y), label = small(), np.arange(24) % 3
    u, v = (torch.tensor(a, requires_grad=True) for a in (x, y))
    fit, test = slice(0, 16), slice(16, None)
    p = D.psth(x, label)
    pairs = [
        (D.velocity_r2(u[fit], v[fit], u[test], v[test]),
         D.velocity_r2(x[fit], y[fit], x[test], y[test])),
        (D.fit_decoder(u, v).predict(u), D.fit_decoder(x, y).predict(x)), (D.psth(u, label), p),
        (D.psth_r2(u, torch.tensor(p, requires_grad=True), torch.tensor(label)),
         D.psth_r2(x, p, label)),
        (D.speed_interval_correlation(u, v[:, 0, 0], torch.tensor(label)),
         D.speed_interval_correlation(x, y[:, 0, 0], label)),
        (D.neural_speed(u.to(torch.bfloat16)), D.neural_speed(torch.tensor(x).bfloat16().double())),
        (D.cross_decode(u, v), D.cross_decode(x, y))]
    for found, expected in pairs: np.testing.assert_allclose(found, expected, rtol=1e-9)
    one = D.bootstrap_pseudo_r2(u, torch.tensor(x.round()))
    np.testing.assert_allclose(one.low, D.bootstrap_pseudo_r2(x, x.round()).low)


@pytest.mark.parametrize("name", [
    lambda k: np.array(list("bac"))[k], lambda k: ["left", "right", "up"][k],
    lambda k: f"target {k}", lambda k: k * 10.0 + 5, lambda k: k > 0])
def test_labels_of_any_kind(name):
    (x, y), k = small(), np.arange(24) % 3
    labels = [name(i) for i in k]
    order = np.unique(labels, return_inverse=True)[1].ravel()
    np.testing.assert_array_equal(D.psth(x, labels), D.psth(x, order))
    np.testing.assert_array_equal(D.speed_interval_correlation(x, y[:, 0, 0], labels),
                                  D.speed_interval_correlation(x, y[:, 0, 0], order))
    if isinstance(labels[0], str):
        p = D.psth(x, order)
        assert D.psth_r2(x + 1, p, labels) == D.psth_r2(x + 1, p, order)
        for kind in (str, object):
            assert D.psth_r2(x + 1, p, np.array(labels, kind)) == D.psth_r2(x + 1, p, order)


@pytest.mark.parametrize("none", [None, np.nan, float("nan")])
def test_what_is_no_label(none):
    (x, y), names = small(), [*"abc"] * 8
    names[5] = names[10] = none
    left = np.delete(np.arange(24), [5, 10])
    rest = [names[i] for i in left]
    np.testing.assert_array_equal(D.psth(x, names), D.psth(x[left], rest))
    assert D.psth_r2(x, D.psth(x, names), names) == pytest.approx(1)
    np.testing.assert_allclose(D.speed_interval_correlation(x, y[:, 0, 0], names),
                               D.speed_interval_correlation(x[left], y[left, 0, 0], rest))
    numbers = [1, 0, none] * 8
    np.testing.assert_array_equal(D.psth(x, numbers), np.stack([x[1::3].mean(0), x[::3].mean(0)]))
    assert D.psth(x, [1, 0, -1] * 8).shape == (2, 10, 5)


def test_labels_that_do_not_fit():
    x = small()[0]
    p = D.psth(x, np.arange(24) % 3)
    for labels, words in (([*"ab"] * 12, "do not belong together"), (["a"] * 9, "(9,) labels"),
                          ([["a"]] * 24, "(24, 1) labels")):
        with pytest.raises(ParameterError, match=re.escape(words)): D.psth_r2(x, p, labels)
