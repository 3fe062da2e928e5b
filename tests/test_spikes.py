"Tools on spikes: binning, smoothing, artefacts, events, and chop and merge against plain loops."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurocompanion.core import ParameterError, RecordingError
from neurocompanion.recordings.spikes.counts import (
    align, chop, correlations, kernel, merge, rebin, remove_correlated, smooth,
    spike_counts)
from neurocompanion.recordings.standard import check, spikes


def made(counts, bin_size=0.01, **kw):
    return spikes(counts, bin_size=bin_size, subject="s", source="made up", **kw)


def rare(seed, units):
    return (np.random.default_rng(seed).random((20_000, units)) < 0.02).astype(np.uint8)


FLAT, TEN = np.ones((7, 2)), np.zeros(10)
@pytest.mark.parametrize("call, text", [
    (lambda: spike_counts([[0.1]], 0), "bin_size is out of range"),
    (lambda: spike_counts([[0.1]], 0.1, [0.0, 1.0]), "windows need a duration"),
    (lambda: spike_counts([[0.1]], 0.1, np.nan, 1.0), "start are not all numbers"),
    (lambda: spike_counts([[np.inf]], 0.1), "unit 0"),
    (lambda: rebin(made(FLAT), 0.025), "bin_size is not a whole number"),
    (lambda: rebin(made(FLAT), 0.2), "shorter than one bin"),
    (lambda: remove_correlated(made(FLAT), 2), "threshold is out of range"),
    (lambda: remove_correlated(made(FLAT), by="name"), "there is no such `by`"),
    (lambda: remove_correlated(made(FLAT), lag=-1), "lag is out of range"),
    (lambda: align(made(FLAT[None]), [0.1], 0, 0), "the window is empty"),
    (lambda: align(None, [1], 0.1, 0.1), "no recording of spikes"),
    (lambda: chop(TEN, 0), "length is out of range"),
    (lambda: chop(TEN, 5.0), "length is out of range"),
    (lambda: chop(TEN, 5, -1), "overlap is out of range"),
    (lambda: chop(TEN[:0], 5), "there is nothing to chop"),
    (lambda: chop(3.0, 5), "there is nothing to chop"),
    (lambda: chop(TEN, 5, tail="zeros"), "there is no such tail"),
    (lambda: merge(TEN, 1), "these are no chops"),
    (lambda: merge(np.zeros((0, 5)), 1), "these are no chops"),
    (lambda: merge(np.zeros((2, 5)), 2, -1), "there is no such weighting"),
    (lambda: merge(np.zeros((2, 5)), 2, total=0), "total is out of range")])
def test_refused(call, text):
    with pytest.raises((ParameterError, RecordingError), match=text): call()


# ---- bins
@given(st.integers(0, 10**6), st.sampled_from([0.001, 0.005, 0.02, 0.1]), st.integers(0, 5))
def test_a_spike_on_an_edge_opens_its_bin(k, bin_size, shift):
    start = shift * bin_size
    counts = spike_counts([[start + (k % 500) * bin_size]], bin_size, start, 500 * bin_size)
    assert counts.sum() == 1 and counts[k % 500, 0] == 1


def test_windows_agree_with_one_long_count():
    rng = np.random.default_rng(0)
    times = [rng.uniform(0, 20, n) for n in (0, 5, 800)]
    whole = spike_counts(times, 0.01, duration=20.0)
    starts = np.array([0.0, 3.5, 3.6, 19.0])
    for s, part in zip(np.round(starts * 100).astype(int), spike_counts(times, 0.01, starts, 1.0)):
        assert np.array_equal(part, whole[s:s + 100])
    assert whole.sum() == 805 and spike_counts(times, 0.01).shape[1] == 3
    counts = spike_counts([np.linspace(0, 0.0999, 1000), [0.15]], 0.1, duration=0.2)
    assert counts[0, 0] == 1000 and counts[1, 1] == 1  # more than a byte holds
    assert spike_counts([[-1.0, 0.0, 0.5, 1.0]], 0.5, 0.0, 1.0).ravel().tolist() == [1, 1]
    assert spike_counts([[], []], 0.5).shape == (1, 2)


def test_rebin_keeps_the_spikes_and_says_what_it_drops():
    rng = np.random.default_rng(0)
    x = rng.poisson(2, (4, 23, 3))
    ds = made(x, rate=x * 100.0, behaviour={"v": rng.random((4, 23, 2)), "t": rng.random(23)})
    out = rebin(ds, 0.05)
    check(out)
    assert out.spikes.values.sum() == x[:, :20].sum() and out.sizes["time"] == 4
    assert np.allclose(out.rate, out.spikes / 0.05) and out.bin_size == 0.05
    assert np.allclose(out.v[1, 2], ds.v[1, 10:15].mean("time"))
    assert np.allclose(out.t, ds.t[:20].values.reshape(4, 5).mean(1))
    assert out.report[-1]["time"] == "last 3 of 23 bins" and ds.report == []
    assert rebin(ds, 0.01).report == [] and "last" not in str(rebin(made(x[:, :20]), 0.05).report)
    many = np.full((300, 1), 200, np.uint8)  # and their sum overflows no byte
    assert rebin(made(many), 3).spikes.item() == 60_000
    gap = np.ones((6, 2), np.float32)
    gap[1, 0] = np.nan
    assert np.argwhere(np.isnan(rebin(made(gap), 0.02).spikes.values)).tolist() == [[0, 0]]


# ---- smoothing
@pytest.mark.parametrize("causal", [False, True])
def test_smooth_is_the_weighted_mean_of_neighbours(causal):
    rng = np.random.default_rng(0)
    x = rng.poisson(1, (2, 60, 3)).astype(float)
    x[0, 20:25, 1] = np.nan
    out = smooth(x, 25, 0.01, causal=causal)
    j = np.arange(-10, 1 if causal else 11)
    k = np.exp(-0.5 * (j / 2.5) ** 2)
    for b, t, n in ((0, 0, 0), (0, 26, 1), (1, 30, 2), (1, 59, 0), (0, 5, 1)):
        at = [(t + i, w) for i, w in zip(j, k) if 0 <= t + i < 60 and not np.isnan(x[b, t + i, n])]
        assert np.isclose(out[b, t, n], sum(w * x[b, i, n] for i, w in at) / sum(w for _, w in at))
    assert np.array_equal(np.isnan(out), np.isnan(x))


def test_half_gaussian_never_looks_ahead():
    x = np.random.default_rng(0).poisson(1, (200, 4)).astype(float)
    y = x.copy()
    y[90:] = 50
    for width in (1, 9, 10, 33.3, 200):
        a, b = (smooth(v, width, 0.01, causal=True) for v in (x, y))
        assert np.array_equal(a[:90], b[:90]) and not np.allclose(a[90], b[90])


def test_kernels_types_and_units():
    assert np.isclose(kernel(50, 0.001).sum(), 1) and len(kernel(50, 0.001)) == 401
    assert len(kernel(50, 0.001, causal=True)) == 201 and kernel(0, 0.001).tolist() == [1]
    assert np.all(np.diff(kernel(50, 0.001, causal=True)) > 0)
    assert smooth(np.ones((5, 2), np.float32), 30, 0.01).dtype == np.float32
    assert np.allclose(smooth([0, 0, 3, 3, 3], 0, 0.01), [0, 0, 3, 3, 3])
    assert smooth(np.ones((2, 0)), 10, 0.01).shape == (2, 0)


# ---- artefacts
def test_correlations_are_pearsons_of_the_first_seconds_and_at_lags():
    x = np.random.default_rng(0).poisson(1, (3, 200, 6)).astype(float)
    want = np.corrcoef(x.reshape(-1, 6).T)
    np.fill_diagonal(want, 0)
    assert np.allclose(correlations(x), want, atol=1e-5)
    x[..., 1], x[..., 2] = 0, np.nan  # silent and not observed: alike to nobody
    c = correlations(x)
    assert np.isfinite(c).all() and not c[1].any() and not c[2].any()
    x = rare(2, 3)
    x[10_000:, 1] = x[10_000:, 0]
    assert remove_correlated(made(x), 0.2, seconds=100).report == []
    assert len(remove_correlated(made(x), 0.2).report) == 1
    x[3:, 2] = x[:-3, 0]
    assert correlations(x, 2)[0, 2] < 0.1 < 0.9 < correlations(x, 3)[0, 2]


def test_the_unit_in_most_pairs_goes_first_then_the_one_that_fires_most():
    x = rare(0, 8)
    where = np.random.default_rng(1).integers(3, size=20_000)
    for u, k in ((1, 0), (2, 1), (5, 2)): x[:, u] |= x[:, 7] & (where == k)
    by_pairs = remove_correlated(made(x), 0.15)
    assert by_pairs.unit.values.tolist() == [0, 1, 2, 3, 4, 5, 6]
    for partner in ("1 (", "2 (", "5 ("): assert partner in by_pairs.report[0]["reason"]
    by_rate = remove_correlated(made(x), 0.15, by="rate")
    assert not (correlations(by_rate.spikes.values) > 0.15).any() and len(by_rate.report) == 3
    assert remove_correlated(made(x), 0.9).report == []
    tie = rare(2, 3)
    tie[:, 0] = tie[:, 2] | (np.random.default_rng(3).random(20_000) < 0.005)
    assert [e["unit"] for e in remove_correlated(made(tie), 0.2).report] == ["0"]


# ---- events
def test_align_is_a_slice():
    x = np.random.default_rng(0).poisson(1, (1000, 4))
    events = np.array([0.05, 1.234, 5.0, 9.95, 20.0, np.nan])
    ds = made(x, behaviour={"v": x[:, 0] * 1.0, "go": ("event", events),
                            "side": ("event", list("abcdef"))})
    out = align(ds, "go", 0.1, 0.2)
    check(out)
    assert out.trial.values.tolist() == [1, 2] and out.side.values.tolist() == ["b", "c"]
    for row, at in enumerate((123, 500)):
        assert np.array_equal(out.spikes[row], x[at - 10:at + 20])
        assert np.array_equal(out.v[row], x[at - 10:at + 20, 0])
    assert np.allclose(out.time, (np.arange(30) - 10) * 0.01)
    assert {e["trial"] for e in out.report} == {"0", "3", "4", "5"}
    assert np.array_equal(align(ds, events[1:3], 0.1, 0.2).spikes, out.spikes)
    assert np.array_equal(align(ds, events[1:3], -0.1, 0.2).spikes, out.spikes[:, 20:])


def test_align_within_trials_and_where_something_was_observed():
    x = np.random.default_rng(0).poisson(1, (3, 100, 2))
    ds = made(x, trial=["a", "b", "c"], time=np.arange(100) * 0.01 - 0.5,
              trial_info={"go": [0.0, 0.1, 0.49], "side": [1, 2, 3]})
    out = align(ds, "go", 0.1, 0.2)
    assert out.trial.values.tolist() == ["a", "b"] and out.side.values.tolist() == [1, 2]
    assert np.array_equal(out.spikes[1], x[1, 50:80]) and out.report[0]["trial"] == "c"
    assert "after the recording ends" in out.report[0]["reason"]
    gap = np.ones((100, 2), np.float32)
    gap[40:60] = np.nan
    out = align(made(gap), [0.1, 0.5], 0.05, 0.05)
    assert out.trial.values.tolist() == [0] and "nothing was observed" in out.report[0]["reason"]


# ---- chop and merge
def slowly(chops, overlap, power, total):
    "Merge by the definition, sample by sample."
    length, step = chops.shape[1], chops.shape[1] - overlap
    x = np.linspace(1 / overlap, 1 - 1 / overlap, overlap) if overlap > 1 else np.full(overlap, .5)
    out = list(chops[0].astype(float))
    for i in range(1, len(chops)):
        for j in range(length):
            at = i * step + j
            if j < overlap: out[at] = (1 - x[j]**power) * out[at] + x[j]**power * chops[i, j]
            else: out.append(chops[i, j])
    return np.array(out)[:total]


@given(st.data())
def test_round_trip_loses_nothing(data):
    T, length = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 40))
    overlap = data.draw(st.integers(0, length - 1))
    weighting = data.draw(st.sampled_from(["linear", "quadratic"]))
    x = np.random.default_rng(T).standard_normal((T, 2)).astype(np.float32)
    c = chop(x, length, overlap)
    y = merge(c, overlap, weighting, total=T)
    assert y.dtype == x.dtype and np.array_equal(y, x)
    bare = merge(c, overlap, weighting)
    assert len(bare) == (length - overlap) * len(c) + overlap >= T
    assert len(bare) - T < max(length, length - overlap + 1)


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 20), st.data())
def test_merge_is_the_definition(k, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    c = np.random.default_rng(k).standard_normal((k, length, 3))
    for name, power in (("linear", 1), ("quadratic", 2)):
        n = (length - overlap) * k + overlap
        assert np.allclose(merge(c, overlap, name), slowly(c, overlap, power, n), atol=1e-12)


def test_number_of_chops_and_kinds_of_numbers_and_axes():
    x = np.zeros((1000, 3))
    assert chop(x, 100, 20, tail="drop").shape == (12, 100, 3)
    assert chop(x, 100, 20).shape == (13, 100, 3)
    assert chop(x[:980], 100, 20).shape == (12, 100, 3)         # it fits: no tail
    assert chop(x, 1000).shape == (1, 1000, 3) and chop(x, 1001).shape == (1, 1001, 3)
    paper = chop(np.arange(300 + 1320 * 200), 300, 100)         # 600 ms at 2 ms, sharing 200 ms
    assert len(paper) == 1321 and np.array_equal(paper[1:, :100], paper[:-1, -100:])
    assert chop(np.arange(5), 4, 0).tolist() == [[0, 1, 2, 3], [4, 4, 3, 2]]   # mirrored
    assert chop(np.arange(2), 7, 0).tolist() == [[0, 1, 1, 0, 0, 1, 1]]
    rng = np.random.default_rng(0)
    odd = np.array([0.0, np.inf, -np.inf, 3.0, np.inf, 1.0])[:, None]
    for x, length, overlap in [(rng.poisson(3, 50).astype(np.uint8), 10, 4), (odd, 3, 2),
                               (rng.standard_normal((50, 2, 3, 1)), 10, 4)]:
        assert np.array_equal(merge(chop(x, length, overlap), overlap)[:len(x)], x)
    assert merge(chop(np.arange(20), 5, 2), 2).dtype == float
    assert np.array_equal(merge([[1, 2], [2, 3]], 1), [1, 2, 3])
    a, b = [[1.0, np.nan, 3], [2, 5, 7]], [[1.0, 2, 4], [np.nan, 5, 7]]  # one knows, one does not
    assert merge(np.array(a), 2, "linear").tolist() == [1.0, 2.0, 4.0, 7.0]
    assert np.allclose(merge(np.array(b), 1, "linear"), [1, 2, 4, 5, 7])
    x = np.zeros(10)
    c = chop(x, 5, 2)
    merge(c, 2)[...] = 1
    chop(x, 5, 2)[...] = 1
    assert not x.any() and not c.any()  # both are copies
