"Baselines against dense Gaussians, scikit-learn and brute force; test trials stay out."
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA as SkPCA
from sklearn.linear_model import PoissonRegressor

from neurocompanion.autolfads import baselines as B, encoding as E
from neurocompanion.autolfads.decoding import cross_decode, fit_decoder
from neurocompanion.core import ParameterError
from neurocompanion.recordings.spikes.simulate import lorenz
from neurocompanion.training.metrics import pseudo_r2, r2

NOISE = 1e-3


def kernel(tau, t):
    lag = (t[:, None] - t) / tau
    return (1 - NOISE) * np.exp(-0.5 * lag**2) + NOISE * np.eye(len(t))


def model(units=8, tau=(2.0, 5.0, 12.0), seed=0):
    "Parameters of a GPFA model."
    rng = np.random.default_rng(seed)
    return rng.standard_normal((units, len(tau))), rng.standard_normal(units), \
        rng.random(units) * 0.5 + 0.2, np.array(tau)


def draw(C, d, R, tau, trials, steps, seed=1):
    "Trials drawn from the model.  # trial time unit, trial time latent"
    rng, t = np.random.default_rng(seed), np.arange(steps)
    x = np.stack([rng.multivariate_normal(np.zeros(steps), kernel(v, t), trials, method="cholesky")
                  for v in tau], -1)
    return x @ C.T + d + np.sqrt(R) * rng.standard_normal((trials, steps, len(d))), x


def dense(C, d, R, tau, steps):
    "Covariances of latents, of data and between them.  # latent·time, unit·time"
    t = np.arange(steps)
    K = np.zeros((len(tau) * steps,) * 2)
    for i, v in enumerate(tau):
        at = slice(i * steps, (i + 1) * steps)
        K[at, at] = kernel(v, t)
    H = np.kron(C, np.eye(steps))
    return K, H @ K @ H.T + np.diag(np.repeat(R, steps)), H @ K


def fitted(p, bin_size=0.02):
    C, d, R, tau = p
    return B.GPFA(C, d, R, tau * bin_size, bin_size, False, NOISE, np.c_[C, d], None)


@pytest.fixture(scope="module")
def ds(): return lorenz(10, 6, units=20, steps=40, bin_size=0.02, dt=0.03, rate=6.0, seed=1)


# ---------------------------------------------------------------- GPFA
@pytest.mark.parametrize("steps, C", [
    (1, None), (2, None), (9, None), (12, None), (7, np.zeros((8, 3))), (7, np.ones((8, 3))),
    (7, np.eye(8)[:, :3] * 1e-6)])
def test_posterior_is_gaussian_conditioning(steps, C):
    "Latents that no unit shows, or that all look alike, are no trouble."
    own, d, R, tau = model()
    p = own if C is None else C, d, R, tau
    y, _ = draw(*p, 4, steps)
    K, V, cross = dense(*p, steps)
    flat = (y - d).transpose(0, 2, 1).reshape(4, -1)
    want = (flat @ np.linalg.solve(V, cross)).reshape(4, 3, steps).transpose(0, 2, 1)
    g = fitted(p)
    np.testing.assert_allclose(g.transform(y), want, atol=1e-9)
    cov = K - cross.T @ np.linalg.solve(V, cross)
    halves = B._split(np.zeros((1, steps, len(d))), [0])
    got = sum(np.einsum("th,ahbk,sk->atbs", v.U, B._posterior(v, *g._parameters())[1], v.U)
              for v in halves)
    np.testing.assert_allclose(got.reshape(3 * steps, -1), cov, atol=1e-9)
    exact = multivariate_normal(np.zeros(len(V)), V)
    assert g.log_likelihood(y) == pytest.approx(exact.logpdf(flat).sum(), abs=1e-7)


def test_recovers_the_timescales():
    p = model(20)
    y, x = draw(*p, 60, 50)
    g = B.gpfa(y, 3, 0.02, root=False)
    assert (np.diff(g.history) > 0).all() and g.history[-1] == pytest.approx(g.log_likelihood(y))
    np.testing.assert_allclose(np.sort(g.tau) / 0.02, [2, 5, 12], rtol=0.1)
    np.testing.assert_allclose(g.R, p[2], rtol=0.1)
    assert g.log_likelihood(y) > fitted(p).log_likelihood(y) - 1               # no worse than truth
    new, z = draw(*p, 20, 50, seed=9)
    W = np.linalg.lstsq(g.transform(y).reshape(-1, 3), x.reshape(-1, 3))[0]
    assert r2(g.transform(new).reshape(-1, 3) @ W, z.reshape(-1, 3)) > 0.9


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("iterations", [1, 5, 8, 9, 30])
def test_likelihood_rises_in_every_iteration(ds, root, iterations):
    g = B.gpfa(ds, 4, 0.02, root=root, iterations=iterations, tolerance=0)
    assert len(g.history) <= iterations and (np.diff(g.history) > 0).all()
    assert g.transform(ds).shape == (60, 40, 4) and g.predict(ds).shape == (60, 40, 20)
    assert g.log_likelihood(ds) >= g.history[-1] - 1e-6


def test_gradient():
    C, d, R, tau = model(6, (1.5, 4.0))
    y, _ = draw(C, d, R, tau, 5, 9)
    groups = B._split(y, list(range(5))) + B._split(y[:, :4], list(range(5)))
    C = C + 0.3
    f = lambda v: B._expect(groups, (*B._unpack(v, 6), NOISE))[0]
    v = B._pack(C, d, R, tau)
    par = (C, d, R, tau, NOISE)
    slope = np.concatenate([s.ravel() for s in B._slope(groups, par, B._expect(groups, par)[1])])
    numeric = [(f(v + e) - f(v - e)) / 2e-5 for e in 1e-5 * np.eye(len(v))]
    np.testing.assert_allclose(slope, numeric, rtol=1e-5, atol=1e-5)


def test_em_step_is_the_closed_form(ds):
    "At a fixed point of the read-out the gradient in C, d and R is zero."
    groups, *_ = B._halved(ds, True)
    C, d, R, floor = B._start(groups, 3)
    tau = np.full(3, 4.0)
    for _ in range(300): C, d, R = B._readout(B._expect(groups, (C, d, R, tau, NOISE))[1], floor)
    par = (C, d, R, tau, NOISE)
    W, noise, _ = B._slope(groups, par, B._expect(groups, par)[1])
    start = (*B._start(groups, 3)[:3], tau, NOISE)
    W0, noise0, _ = B._slope(groups, start, B._expect(groups, start)[1])
    assert abs(W).max() < 0.02 * abs(W0).max() and abs(noise).max() < 0.02 * abs(noise0).max()


def test_test_trials_cannot_touch_gpfa(ds):
    x = ds.spikes.values[:30]
    g = B.gpfa(x, 3)
    names = ("C", "d", "R", "tau", "counts")
    before = {k: np.copy(getattr(g, k)) for k in names}
    g.predict(50 * ds.spikes.values[30:])
    for k, v in before.items(): np.testing.assert_array_equal(getattr(g, k), v)
    one = g.transform(ds.spikes.values[40:41])
    np.testing.assert_allclose(g.transform(ds.spikes.values[30:])[10], one[0], atol=1e-12)
    np.testing.assert_array_equal(B.gpfa(x, 3).C, g.C)                         # no chance in it


def test_silent_and_constant_units(ds):
    x = ds.spikes.values[:20].astype(float)
    x[..., 3], x[..., 4] = 0, 2
    g = B.gpfa(x, 3, iterations=20)
    rates = g.predict(x)
    assert np.isfinite(rates).all() and rates[..., 3].max() < 1e-3
    np.testing.assert_allclose(rates[..., 4], 2, atol=1e-2)


@pytest.mark.parametrize("call, words", [
    (lambda x: B.gpfa(x, 3, bin_size=0), "bins of 0 s"),
    (lambda x: B.gpfa(x, 3, noise=0), "noise 0"),
    (lambda x: B.gpfa([], 3), "not trials"),
    (lambda x: B.gpfa([x[0], x[1, :, :3]], 3), "not trials"),
    (lambda x: B.gpfa(np.where(np.arange(60)[:, None, None] == 7, np.nan, x), 3), "trial 7"),
    (lambda x: B.gpfa(x, 3, iterations=0), "0 iterations")])
def test_gpfa_errors(ds, call, words):
    with pytest.raises(ParameterError, match=words): call(ds.spikes.values)


# ---------------------------------------------------------------- smoothing and PCA
def test_width_finds_the_true_scale():
    rng, t = np.random.default_rng(0), np.arange(200) * 0.01
    best = []
    for period in (0.2, 0.5, 2.0):
        rate = 0.3 * (1 + np.sin(2 * np.pi * (t / period + rng.random((40, 1)))))[..., None]
        best.append(B.smoothing(rng.poisson(np.repeat(rate, 4, 2)), 0.01).width_ms)
    assert best[0] < best[1] < best[2]


def test_smoothing_ignores_test_trials_and_may_follow_behaviour(ds):
    x, z = ds.spikes.values, ds.latent.values
    a = B.smoothing(x[:40], 0.02, (20, 40, 80), behaviour=z[:40], alpha=1.0)
    assert a.scores.shape == (3,) and np.isfinite(a.scores).all()
    assert a.width_ms == a.widths[a.scores.argmax()]
    rates = a.transform(x[:40])
    assert a.scores.max() == pytest.approx(cross_decode(rates, z[:40], alpha=1.0).mean())
    wild = np.concatenate([x[:40], 99 * x[40:]])
    assert B.smoothing(wild[:40], 0.02).scores.tolist() == B.smoothing(x[:40], 0.02).scores.tolist()
    with pytest.raises(ParameterError, match="no width could be scored"):
        B.smoothing(0 * x, 0.02)
    assert B.smoothing(x, 0.02, 50).width_ms == 50
    cut = [x[0], x[1, :30]]
    assert [v.shape for v in a.transform(cut)] == [(40, 20), (30, 20)]
    np.testing.assert_allclose(a.transform(cut)[1], a.transform(x[1:2, :30])[0])


def test_pca_is_scikit_learns(ds):
    x = ds.spikes.values.astype(float)
    p = B.pca(x, 4, bin_size=0.02, width_ms=0)
    ref = SkPCA(4).fit(x.reshape(-1, 20))
    np.testing.assert_allclose(abs(p.axes.T @ ref.components_.T), np.eye(4), atol=1e-6)
    np.testing.assert_allclose(p.share[:4], ref.explained_variance_ratio_, atol=1e-10)
    share = B.pca(x, 0.5, bin_size=0.02)
    n = share.axes.shape[1]
    assert share.share[:n].sum() >= 0.5 > share.share[:n - 1].sum()
    for bad in (0, 21, 1.5, -1):
        with pytest.raises(ParameterError, match="neither a number nor a share"):
            B.pca(x, bad, bin_size=0.02)


# ---------------------------------------------------------------- GLM
def test_glm_is_poisson_regression():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((20, 50, 2))
    w = np.array([[0.6, -0.3], [0.2, 0.4]])
    rate = np.exp(-1 + z @ w + np.roll(z, 2, 1)[..., :1] * 0.5)
    s = rng.poisson(rate)
    g = E.glm(s, 3 * z + 1, lags=3, alpha=1e-6)
    np.testing.assert_allclose(g.weight[:, :2], w.T, atol=0.1)
    np.testing.assert_allclose(g.weight[:, 4], 0.5, atol=0.1)                   # two bins ago
    flat = np.concatenate([E._lagged(v, 3) for v in (3 * z + 1 - g.mean) / g.spread])
    ref = PoissonRegressor(alpha=1e-6, max_iter=1000, tol=1e-8).fit(flat, s[..., 1].ravel())
    got = g.predict(3 * z + 1)[..., 1].ravel()
    np.testing.assert_allclose(got, ref.predict(flat), rtol=1e-3)
    flat = E.glm(s, z, lags=0)
    assert pseudo_r2(g.predict(3 * z + 1), s) > pseudo_r2(flat.predict(z), s)


def test_glm_silent_unit():
    s = np.zeros((4, 20, 2)); s[..., 1] = np.random.default_rng(0).poisson(1, (4, 20))
    g = E.glm(s, np.random.default_rng(1).standard_normal((4, 20, 1)), lags=1)
    rates = g.predict(np.zeros((4, 20, 1)))
    assert np.isfinite(rates).all() and rates[..., 0].max() < 1e-6
    for bad in (np.zeros((4, 19, 1)), np.full((4, 20, 1), np.nan), np.zeros((3, 20, 1))):
        with pytest.raises(ParameterError, match="covariates do not fit|NaN"): E.glm(s, bad)


# ---------------------------------------------------------------- dPCA


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
@pytest.mark.parametrize("part", ["time", "condition"])
def test_dpca_is_the_best_of_its_rank(part, ridge):
    "No alternating least squares from anywhere finds a lower loss."
    rng = np.random.default_rng(0)
    x = sum(rng.standard_normal((n, 30, 2)) @ rng.standard_normal((2, 12)) for n in (1, 5))
    x = x + 0.3 * rng.standard_normal(x.shape)
    z = E.dpca(x, 2, ridge=ridge)
    flat = (x - z.mean).reshape(-1, 12)
    shared = np.broadcast_to((x - z.mean).mean(0), x.shape)
    goal = (shared if part == "time" else x - z.mean - shared).reshape(-1, 12)
    lam = ridge * (flat**2).sum() / 12
    loss = lambda M: ((goal - flat @ M.T)**2).sum() + lam * (M**2).sum()
    ours = loss(z.encoder[part] @ z.decoder[part].T)
    cov = flat.T @ flat + lam * np.eye(12)
    for seed in range(5):
        F = np.random.default_rng(seed).standard_normal((12, 2))
        for _ in range(300):
            D = np.linalg.solve(cov, flat.T @ goal @ F @ np.linalg.inv(F.T @ F))
            F = goal.T @ flat @ D @ np.linalg.inv(D.T @ cov @ D)
        assert ours <= loss(F @ D.T) * (1 + 1e-9)
    np.testing.assert_allclose(z.encoder[part].T @ z.encoder[part], np.eye(2), atol=1e-10)


# ---------------------------------------------------------------- real recordings
def binned(trial, width):
    whole = trial[:, :trial.shape[1] // width * width].reshape(len(trial), -1, width)
    return whole.sum(2).T.astype(float)


def structs(mirror, *path):
    from scipy.io import loadmat
    m = loadmat(mirror.joinpath("macaque_small", *path), squeeze_me=True, struct_as_record=False)
    return m["dat" if "dat" in m else "D"]


def test_motor_cortex_trials_and_decoding_reaches(mirror):
    "More than one latent is likely, held out; cursor velocity on test trials comes from both."
    x = np.stack([binned(t.spikes, 20) for t in structs(mirror, "NeuralTraj", "sample_dat.mat")])
    x = x[..., x.mean((0, 1)) > 0.01]
    few, rest = x[::2], x[1::2]
    likely = {q: B.gpfa(few, q, 0.02).log_likelihood(rest) for q in (1, 3, 8)}
    assert likely[3] > likely[1] + 50 and B.smoothing(few, 0.02).width_ms > 20
    spikes, velocity = [], []
    for t in structs(mirror, "NeuralTraj", "sample2_dat.mat"):
        spikes.append(binned(t.spikes, 20))
        when = 10 + 20 * np.arange(len(spikes[-1]))
        velocity.append(np.stack([np.interp(when, t.cursor_times.astype(float), v,
                                            left=np.nan, right=np.nan)
                                  for v in t.cursor_vel.T[:2]], 1))
    x, v = np.stack(spikes), np.stack(velocity)
    few, rest = slice(0, 100), slice(100, None)
    s = B.smoothing(x[few], 0.02)
    g = B.gpfa(x[few], 10, 0.02, iterations=60)
    how = dict(alpha=np.logspace(-2, 4, 7), delay=range(0, 9, 2))
    score = {k: fit_decoder(m(x[few]), v[few], **how).score(m(x[rest]), v[rest])
             for k, m in {"smoothing": s.transform, "GPFA": g.transform}.items()}
    assert score["GPFA"] > score["smoothing"] > 0.6
