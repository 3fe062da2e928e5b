"Metrics against reference numbers, closed forms and their promises about bad input."
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import least_squares

from neurocompanion.core import ParameterError
from neurocompanion.training import metrics as M

near = pytest.approx


def poisson(seed=0, shape=(20, 30, 5)):
    rng = np.random.default_rng(seed)
    rates = rng.gamma(2.0, 0.2, shape)
    return rates, rng.poisson(rates).astype(float)


# ---- bits per spike
def test_bits_per_spike_agrees_with_the_benchmark(gold):
    pred, spikes, gaps = gold["pred"], gold["spikes"], gold["sp_nan"]
    want = near(float(gold["out_bps"]), abs=1e-9)
    for p, s in [(pred, spikes), (pred.tolist(), spikes.tolist()),
                 (torch.tensor(pred, requires_grad=True), torch.tensor(spikes)),
                 (pred.reshape(-1, 6), spikes.reshape(-1, 6))]:
        assert M.bits_per_spike(p, s) == want
    assert M.bits_per_spike(pred, gaps) == near(float(gold["out_bps_nan"]), abs=1e-9)
    alone = [M.bits_per_spike(pred[..., i:i + 1], gaps[..., i:i + 1]) for i in range(6)]
    assert M.bits_per_spike(pred, gaps, per_neuron="each") == near(alone)
    assert M.bits_per_spike(pred, gaps, per_neuron=True) == near(np.mean(alone))


@pytest.mark.filterwarnings("error")
def test_zero_rates_silent_neurons_and_empty_input():
    rates, spikes = poisson()
    rates[0] = 0
    assert M.bits_per_spike(rates, spikes) == \
        M.bits_per_spike(np.where(rates == 0, 1e-9, rates), spikes)
    mean = M.bits_per_spike(rates[..., :4], spikes[..., :4], per_neuron=True)
    spikes[..., 4] = 0
    each = M.bits_per_spike(rates, spikes, per_neuron="each")
    assert np.isnan(each).tolist() == [False] * 4 + [True]
    assert M.bits_per_spike(rates, spikes, per_neuron=True) == near(mean)
    spikes[..., 3] = np.nan
    assert np.isnan(M.bits_per_spike(rates, spikes, per_neuron="each")[3])
    for f in (M.bits_per_spike, M.pseudo_r2, M.r2, M.masked_mse, M.mae, M.accuracy):
        assert np.isnan(f(np.zeros((0, 3)), np.zeros((0, 3))))
    assert np.isnan(M.bits_per_spike(rates * 0, spikes * 0))


# ---- what is refused
@pytest.mark.parametrize("call, says", [
    (lambda: M.bits_per_spike([[0.1, 0.2]], [[0, -1]]), "spikes are negative"),
    *[(lambda v=v: M.bits_per_spike([[0.1, v]], [[0, 1]]), "rates holds NaN or infinity")
      for v in (np.nan, np.inf)],
    (lambda: M.bits_per_spike([["a", "b"]], [[0, 1]]), "not an array of numbers"),
    (lambda: M.r2(["1"], [1.0]), "not an array of numbers"),
    (lambda: M.r2(np.array(["2026-11-21"], "M8[D]"), [1.0]), "not an array of numbers"),
    (lambda: M.r2([1.0, 2.0], [1.0, np.inf]), "target holds NaN or inf.*Mark as NaN"),
    (lambda: M.r2([1, 2], [1, 3], per_neuron="no"), "per_neuron"),
    (lambda: M.interval([1, 2], method="sd"), "bootstrap_t"),
    *[(lambda f=f: f(np.ones((4, 3, 1)), np.ones((4, 3, 2))), r"\(4, 3, 2\).*\(4, 3, 1\)")
      for f in (M.bits_per_spike, M.r2, M.masked_mse, M.mae, M.naive_mse, M.pseudo_r2, M.accuracy,
                M.correlation, M.corr_h)],
    (lambda: M.confusion([7], [0], classes=2), r"\[7\]"),
    (lambda: M.fit_scaling([1, 2, 0], [1, 2, 3]), "1 others of 3"),
    (lambda: M.fit_scaling([1, 2, 3], [1, np.nan, 3], "log"), "1 others of 3"),
    (lambda: M.fit_scaling([2, 2, 2], [1, 2, 3]), "2 or more, found 1"),
    (lambda: M.fit_scaling([1, 2, 3], [1, 2, 3], "cubic"), "found cubic")])
def test_what_is_wrong_is_said(call, says):
    with pytest.raises(ParameterError, match=says): call()


# ---- pseudo-R²
def test_pseudo_r2_from_log_likelihoods():
    rates, spikes = poisson(1)
    null = np.broadcast_to(spikes.mean((0, 1)), spikes.shape)
    best, model, mean, other = (stats.poisson.logpmf(spikes, r).sum((0, 1))
                                for r in (spikes, rates, null, rates * 0.8))
    assert M.pseudo_r2(rates, spikes, "each") == near(1 - (best - model) / (best - mean))
    assert M.pseudo_r2(rates, spikes) == near(1 - (best - model).sum() / (best - mean).sum())
    assert M.relative_pseudo_r2(rates, rates * 0.8, spikes, "each") == near(
        1 - (best - model) / (best - other))
    constant = np.c_[np.full(50, 3.0), np.arange(50) % 3]
    assert np.isnan(M.pseudo_r2(constant + 0.1, constant, "each")).tolist() == [True, False]


# ---- masked losses
def loop_mse(pred, target, mask):
    total, n = 0.0, 0
    for b, i in np.argwhere(np.asarray(mask) > 0):
        total, n = total + ((pred[b, :, i] - target[b, :, i])**2).sum(), n + pred.shape[1]
    return total / n


@pytest.mark.parametrize("kind", [bool, int, float])
def test_masked_mse_equals_the_loop(kind):
    rng = np.random.default_rng(0)
    pred, target = rng.standard_normal((2, 6, 7, 5))
    mask = (rng.random((6, 5)) < 0.4).astype(kind)
    want = loop_mse(pred, target, mask)
    for m in (mask, np.broadcast_to(mask[:, None], pred.shape), mask.tolist(), mask[:, None]):
        assert M.masked_mse(pred, target, m) == near(want)
        t = M.masked_mse(torch.tensor(pred), torch.tensor(target), torch.tensor(m))
        assert isinstance(t, torch.Tensor) and t.item() == near(want)
    assert M.masked_mse(torch.tensor(pred), target, mask).item() == near(want)
    one = loop_mse(pred, target, np.broadcast_to(mask[0], mask.shape))
    for m in (mask[0], mask[:1], mask[:1, None]):
        assert M.masked_mse(pred, target, m) == near(one)
    late = (np.arange(7) > 2)[None, :, None]
    assert M.masked_mse(pred, target, late) == near(M.masked_mse(pred[:, 3:], target[:, 3:]))
    for wrong in mask[:2], mask[:, :4], np.ones((6, 7)), np.ones((1, 6, 7, 5)):
        with pytest.raises(ParameterError, match="the mask does not fit the data"):
            M.masked_mse(pred, target, wrong)


@pytest.mark.filterwarnings("error")
def test_losses_of_every_type_are_differentiable_and_keep_nan_where_labelled():
    pred, target = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True).unbind()
    mask = torch.rand(4, 5) < 0.5
    assert torch.autograd.gradcheck(lambda p: M.masked_mse(p, target.detach(), mask), pred)
    for f in (M.masked_mse, M.mae): assert np.isnan(f([[1.0, np.nan]], [[1.0, 1.0]]))
    big = torch.full((8, 1000), 20.0, dtype=torch.float16)
    assert M.masked_mse(big, torch.zeros_like(big)).item() == near(400)  # 3.2e6 summed
    assert M.masked_mse(torch.tensor([1, 2]), torch.tensor([0, 0])).item() == 2.5
    assert M.masked_mse(torch.tensor([True, True]), torch.tensor([True, False])).item() == 0.5
    fixed = np.broadcast_to(1.0, (3, 2)), np.broadcast_to(True, 2)  # cannot be written to
    assert M.masked_mse(torch.zeros(3, 2), *fixed).item() == 1
    assert M.masked_mse(torch.zeros(3, 2), np.ones((3, 2))[::-1]).item() == 1
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    mean, n = M.masked_mse(torch.ones(2, 4, 3), torch.zeros(2, 4, 3), mask, weight=True)
    assert mean == 1 and n == 12


def test_masked_mse_runs_under_vmap_and_mae_over_axes():
    x, y = torch.randn(2, 3, 4, 6, 5)
    mask = torch.rand(3, 4, 5) < 0.5
    stacked = torch.func.vmap(M.masked_mse)(x, y, mask)
    assert torch.allclose(stacked, torch.stack([M.masked_mse(*v) for v in zip(x, y, mask)]))
    rng = np.random.default_rng(2)
    pred, target = rng.standard_normal((2, 6, 7, 5))
    mask = rng.random((6, 5)) < 0.5
    per_lead = M.mae(torch.tensor(pred), torch.tensor(target), torch.tensor(mask), axis=(0, 2))
    full = np.broadcast_to(mask[:, None], pred.shape)
    want = np.where(full, abs(pred - target), 0).sum((0, 2)) / full.sum((0, 2))
    assert per_lead.numpy() == near(want)


# ---- R², correlation
def test_r2_pooled_and_per_neuron():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((10, 20, 4)) * [1, 2, 5, 9] + [0, 3, -2, 50]
    p = y + rng.standard_normal(y.shape)
    rows, guess = y.reshape(-1, 4), p.reshape(-1, 4)
    error, total = ((rows - guess)**2).sum(0), ((rows - rows.mean(0))**2).sum(0)
    assert M.r2(p, y, "each") == near(1 - error / total)
    assert M.r2(p, y, True) == near((1 - error / total).mean())
    assert M.r2(p, y) == near(1 - error.sum() / total.sum())
    assert M.r2(p[..., 0].ravel(), y[..., 0].ravel()) == near(1 - error[0] / total[0])
    assert M.r2(torch.tensor(p), torch.tensor(y)) == near(M.r2(p, y))


def test_constant_targets_no_neurons_and_hidden_entries():
    for value in (0.0, 0.1, 1e9, -3.3):
        y = np.full((1000, 1), value)
        assert np.isnan(M.r2(y, y)) and np.isnan(M.r2(y + 1, y, True))
        assert np.isnan(M.correlation(np.random.default_rng(0).random((1000, 1)), y))
    none, hidden = np.zeros((3, 0)), np.ma.masked_equal([[1.0], [5], [2]], 5)
    for f in (M.r2, M.bits_per_spike, M.pseudo_r2):
        assert np.isnan(f(none, none)) and f(none, none, "each").shape == (0,)
        assert f([[1.0], [2], [3]], hidden) == f([[1.0], [3]], [[1.0], [2]])


def test_correlations_by_loops():
    rng = np.random.default_rng(0)
    p, y = rng.standard_normal((2, 40, 3))
    y[rng.random(y.shape) < 0.3] = np.nan
    of = lambda a, b: np.corrcoef(a[~np.isnan(b)], b[~np.isnan(b)])[0, 1]
    assert M.correlation(p, y) == near([of(p[:, i], y[:, i]) for i in range(3)])
    p, y = rng.standard_normal((2, 12, 6, 3))
    along = [of(p[w, :, n], y[w, :, n]) for w in range(12) for n in range(3)]
    assert M.corr_h(p, y) == near(np.mean(along))
    across = [[of(p[s:s + 5, h, n], y[s:s + 5, h, n]) for s in range(8) for n in range(3)]
              for h in range(6)]
    assert M.corr_w(p, y, length=5) == near(np.mean(across, 1))


# ---- classification
def test_accuracy_and_confusion_ignore_steps():
    rng = np.random.default_rng(0)
    y = rng.integers(-1, 4, 500)
    scores = rng.standard_normal((500, 4))
    p = scores.argmax(1)
    on = y >= 0
    assert M.accuracy(scores, y) == near((p == y)[on].mean())
    assert M.accuracy(torch.tensor(scores), torch.tensor(y)) == M.accuracy(p, y)
    table = M.confusion(p, y, classes=4)
    want = [[((y == i) & (p == j)).sum() for j in range(4)] for i in range(4)]
    assert (table == want).all() and table.sum() == on.sum()
    assert np.nansum(M.confusion(p, y, 4, normalise=True), 1) == near(np.ones(4))
    assert M.accuracy(p, y, ignore=[-1, 0]) == near((p == y)[y > 0].mean())
    assert np.isnan(M.confusion(p, y, 5, normalise=True)[4]).all()
    assert M.confusion(["fwd", "rev"], ["fwd", "fwd"], ["fwd", "rev"]).tolist() == [[1, 1], [0, 0]]
    assert M.accuracy([1.0, 0.0], [1.0, np.nan]) == 1.0


# ---- intervals and laws


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["t", "percentile", "bootstrap_t"])
def test_intervals_of_little(method):
    one = M.interval([2.0], method=method)
    assert one.mean == 2 and np.isnan(one.low) and one.n == 1
    assert np.isnan(M.interval([], method=method).mean)
    same = M.interval([2.0, 2.0, 2.0], method=method)
    assert same.mean == 2 and (same.low == same.high == 2 or np.isnan(same.low))
    a = M.interval([1.0, 2, 4, np.nan], method=method)
    assert a.n == 3 and a.low < a.mean < a.high
    assert a == M.interval([1.0, 2, 4, np.nan], method=method)


def test_t_interval_line_and_log_are_the_ordinary_ones():
    x = np.random.default_rng(0).standard_normal((6, 3))
    want = stats.t.interval(0.9, 5, x.mean(0), stats.sem(x))
    mean, low, high, n = M.interval(x, level=0.9)
    assert mean == near(x.mean(0)) and (n == 6).all()
    assert low == near(want[0]) and high == near(want[1])
    rng = np.random.default_rng(0)
    n = rng.uniform(1e2, 1e5, 40)
    loss = 3 * n**-0.4 * np.exp(0.2 * rng.standard_normal(40))
    slope, start = np.polyfit(np.log(n), np.log(loss), 1)
    law = M.fit_scaling(n, loss)
    assert (law.a, law.b) == near((np.exp(start), -slope))
    assert law(n) == near(np.exp(start + slope * np.log(n)))
    slope, start = np.polyfit(np.log(n), -loss, 1)
    law = M.fit_scaling(n, -loss, "log")
    assert (law.a, law.b) == near((start, slope))
    for said, law in [("S = 1 + 0.4343·ln N", M.fit_scaling([1, 10, 100], [1, 2, 3], "log")),
                      ("S = 3 − 0.4343·ln N", M.fit_scaling([1, 10, 100], [3, 2, 1], "log")),
                      ("L = 1·N^0.5", M.fit_scaling([1, 100], [1, 10]))]: assert str(law) == said


def test_floor_recovers_known_laws_and_agrees_with_scipy_least_squares():
    n = np.geomspace(1e2, 1e6, 10)
    for a, b, c in [(1e3, 1.46, 0.01), (0.5, 0.1, 0.2), (5, 0.3, 0.0)]:
        law = M.fit_scaling(n, a * n**-b + c, "floor")
        assert law(n) == near(a * n**-b + c, rel=1e-4) and law.c == near(c, abs=2e-3)
    rng = np.random.default_rng(4)
    n = np.repeat(np.geomspace(1e2, 1e6, 9), 6)
    loss = (8 * n**-0.45 + 0.03) * np.exp(0.05 * rng.standard_normal(n.size))
    law = M.fit_scaling(n, loss, "floor", resamples=0)
    f = lambda t: np.log(np.exp(t[0]) * n**-t[1] + np.exp(t[2])) - np.log(loss)
    r = f(np.log([law.a, 1, law.c]) * [1, 0, 1] + [0, law.b, 0])
    delta = 1.345 * 1.4826 * np.median(abs(r))
    best = least_squares(f, [1.0, 0.5, -3.0], loss="huber", f_scale=delta, xtol=1e-12, ftol=1e-12)
    assert (np.log(law.a), law.b, np.log(law.c)) == near(tuple(best.x), rel=0.01)


def test_band_covers_and_needs_seeds():
    n = np.geomspace(1e2, 1e5, 6)
    hits = 0
    for trial in range(60):
        noise = np.exp(0.1 * np.random.default_rng(trial).standard_normal((8, 6)))
        _, low, high = M.fit_scaling(n, 4 * n**-0.3 * noise, resamples=300).intervals()["b"]
        hits += low < 0.3 < high
    assert 48 <= hits <= 60                                     # 8 seeds: a little under 95 %
    alone = M.fit_scaling(n, 4 * n**-0.3)
    assert np.isnan(alone.band(n)).all() and np.isnan(alone.intervals()["b"][1])
    two = M.fit_scaling(np.repeat([1e2, 1e3], 5), 1 + 0.1 * np.random.default_rng(0).random(10))
    assert np.isfinite(two.band([1e4])).all()


def test_shared_seeds_are_resampled_whole():
    n = np.geomspace(1e2, 1e5, 6)
    shift = np.exp(0.5 * np.random.default_rng(0).standard_normal((9, 1)))  # a seed is good or bad
    table = 4 * n**-0.3 * shift
    whole = M.fit_scaling(n, table)                              # everywhere: the slope is certain
    loose = M.fit_scaling(np.tile(n, 9), table.ravel())
    width = lambda law: np.ptp(law.intervals()["b"][1:])
    assert width(whole) < 1e-9 < 0.01 < width(loose)
    tidy = M.fit_scaling(np.tile(n, 9), table.ravel(), seed=np.repeat(np.arange(9), 6))
    assert tidy.intervals() == whole.intervals()


def test_extrapolation_holds_out_sizes():
    n = np.geomspace(1e2, 1e6, 8)
    out = M.extrapolation(n, 5 * n**-0.4, hold=3)
    assert list(out.columns) == ["n", "measured", "predicted", "low", "high", "ratio"]
    assert out.n.to_numpy() == near(n[-3:]) and out.ratio.to_numpy() == near(1)
    runs = np.random.default_rng(0).permutation(24)              # order of the rows does not matter
    sizes, loss = np.repeat(n, 3)[runs], (5 * np.repeat(n, 3)**-0.4 + 0.05)[runs]
    out = M.extrapolation(sizes, loss, "floor", hold=2)
    assert out.ratio.to_numpy() == near(1, rel=1e-2)


# ---- promises about all of them
def test_nothing_is_changed():
    rates, spikes = poisson(5)
    rates[0, 0], spikes[1, 1] = 0, np.nan
    counts = np.nan_to_num(spikes)
    labels = np.random.default_rng(0).integers(-1, 3, 50)
    n, loss = np.repeat(np.geomspace(10, 1e4, 6), 3), np.random.default_rng(0).random(18) + 1
    arrays = [rates, spikes, counts, labels, n, loss]
    tensors = torch.tensor(rates), torch.tensor(spikes)
    for v in arrays: v.flags.writeable = False
    before = [v.copy() for v in arrays]
    for f in (M.bits_per_spike, M.pseudo_r2, M.r2, M.masked_mse, M.mae, M.correlation):
        f(rates, spikes), f(*tensors)
    M.relative_pseudo_r2(rates, rates, spikes), M.masked_mse(rates, counts, rates[:, 0] > 0)
    M.corr_h(rates, counts), M.corr_w(rates, counts, 8), M.interval(counts, method="percentile")
    M.accuracy(labels, labels), M.confusion(labels[labels >= 0], labels[labels >= 0])
    M.fit_scaling(n, loss, "floor"), M.extrapolation(n, loss)
    for v, b in zip([*arrays, *tensors], [*before, rates, spikes]):
        np.testing.assert_array_equal(np.asarray(v), b)
