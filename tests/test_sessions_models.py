"The transformer of many sessions: counts, a slow reference, causality, names, baselines."
import math

import pytest
import torch
import torch.nn.functional as F

from neurocompanion.core import ParameterError
from neurocompanion.sessions import models as M
from neurocompanion.sessions.baselines import Mean, Smoothing, StitchedGRU, StitchedLinear
from neurocompanion.sessions.data import Session

SMALL = dict(token=10, width=16, heads=2, layers=3, feedforward=24)
pytestmark = pytest.mark.usefixtures("one_thread")


def counts(*shape, rate=0.5, seed=0):
    return torch.poisson(torch.full(shape, rate), generator=torch.Generator().manual_seed(seed))


def made(make=M.NDT, bins=30, units=7, **how):
    torch.manual_seed(1)
    model = make(bins, **(SMALL if make is M.NDT else {}) | how)
    model.add_session("a", units, seed=0)
    model.add_session("b", units, seed=1)
    return model


# ---- what it is
def slow(model, x, name, mask):
    "The network of the notes, one trial, head and bin at a time."
    own, out = model.stitcher(name), []
    norm = lambda v, m: (v - v.mean()) / (v.var(unbiased=False) + 1e-5).sqrt() * m.weight + m.bias
    for trial, hidden in zip(x, mask):
        stream = [own.token, model.schemes[1]]
        for t, (bin, h) in enumerate(zip(trial, hidden)):
            v = own.encode.weight @ (bin * 0 if h else bin) + own.encode.bias
            v = model.lift.weight @ v + model.lift.bias
            v = model.lower.weight @ (v / (1 + v.abs())) + model.lower.bias
            stream.append(v + model.positions[t])
        for layer in model.layers:
            w = len(stream[0])
            q, k, v = [[wt @ norm(s, layer.norm1) + b for s in stream] for wt, b in
                       zip(layer.qkv.weight.split(w), layer.qkv.bias.split(w))]
            new = []
            for i, s in enumerate(stream):
                who, heads = range(max(i + 1, 2)), []
                for part in torch.arange(w).view(layer.heads, -1):
                    score = torch.stack([q[i][part] @ k[j][part] for j in who])
                    p = (score / math.sqrt(len(part))).softmax(0)
                    heads.append(sum(pj * v[j][part] for pj, j in zip(p, who)))
                s = s + layer.out.weight @ torch.cat(heads) + layer.out.bias
                up = layer.up.weight @ norm(s, layer.norm2) + layer.up.bias
                up = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
                new.append(s + layer.down.weight @ up + layer.down.bias)
            stream = new
        out.append(torch.stack([own.decode.weight @ norm(s, model.norm) + own.decode.bias
                                for s in stream[2:]]))
    return torch.stack(out)


def test_slow_reference():
    model, x = made().eval(), counts(2, 9, 7)
    mask = torch.rand(2, 9) < 0.4
    with torch.no_grad(): torch.testing.assert_close(model(x, "b", mask), slow(model, x, "b", mask))


def test_initial_scaling():
    torch.manual_seed(0)
    layer, scale = M.Layer(64, 8, 128, 5), 0.67 * 5 ** -0.25
    for w, factor, reads in [(layer.out.weight, scale, 64), (layer.up.weight, scale, 64),
                             (layer.down.weight, scale, 128), (layer.qkv.weight[:128], 1, 64),
                             (layer.qkv.weight[128:], scale * 2**0.5, 64)]:
        assert w.abs().max().item() == pytest.approx(factor * reads ** -0.5, rel=0.01)


# ---- causality
@pytest.mark.parametrize("make", [M.NDT, StitchedLinear, StitchedGRU, Smoothing, Mean])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_future_moves_nothing(make, training, masked):
    model = made(make).train(training)
    x, mask = counts(4, 30, 7), M.hide((4, 30), 0.3) if masked else None
    for first in (1, 11, 29):
        y = x.clone()
        y[:, first:] = counts(4, 30 - first, 7, rate=5.0, seed=first)
        told = []
        for v in (x, y):
            torch.manual_seed(3)                                   # the same dropout
            told.append(model(v, "a", mask))
        assert torch.equal(told[0][:, :first], told[1][:, :first])
        if masked: assert torch.equal(model.eval()(x, "a", mask).detach(),
                                      model(x.masked_fill(mask[..., None], 9), "a", mask).detach())
        model.train(training)


def test_no_gradient_from_the_past_to_the_future():
    model = made().double()
    x = counts(2, 30, 7).double().requires_grad_()
    model(x, "a")[:, 12].sum().backward()
    assert x.grad[:, 13:].abs().max() == 0
    assert (x.grad[:, :13].abs().amax((0, 2)) > 0).all()


def test_causal_at_full_width():
    "Large enough for attention in blocks."
    torch.manual_seed(0)
    model = M.NDT(150, layers=2)
    model.add_session("a", 40)
    x = counts(3, 150, 40)
    y = x.clone()
    y[:, 77:] += 3
    for training in (True, False):
        told = []
        for v in (x, y):
            torch.manual_seed(3)
            with torch.no_grad(): told.append(model.train(training)(v, "a"))
        assert torch.equal(told[0][:, :77], told[1][:, :77])
        assert not torch.equal(told[0][:, 77], told[1][:, 77])


def test_trials_do_not_meet_and_what_the_public_code_lets_leak():
    model, x = made().eval(), counts(5, 30, 7)
    y = x.clone()
    y[3] = 4
    a, b = model(x, "a"), model(y, "a")
    torch.testing.assert_close(a[[0, 1, 2, 4]], b[[0, 1, 2, 4]])
    assert M.may_ask(4, leak=True)[:2].all()


# ---- sessions


@pytest.mark.parametrize("name", ["mouse.7/2019.nwb", "keys", "type", "50%", "a.b", "ü", "a%2E"])
def test_names(name):
    model = made()
    model.add_session(name, 4)
    assert model(counts(1, 5, 4), name).shape == (1, 5, 4)
    assert list(model.sessions) == ["a", "b", name]


def test_sessions_of_one_size_and_names_that_look_alike_are_two_with_starts_of_their_own():
    model, second, x = made(), M.NDT(30, **SMALL), counts(3, 30, 7)
    second.add_session("other", 3)
    second.add_session("a", 7, seed=0)
    for p, q in zip(model.session_parameters("a"), second.session_parameters("a")):
        assert torch.equal(p, q)
    for name in ("a.b", "a%2Eb"): model.add_session(name, 3, seed=0)
    before = model.eval()(x, "b").detach()
    with torch.no_grad():
        model.stitcher("a.b").token.zero_()
        for p in model.session_parameters("a"): p.add_(1)
    assert model.stitcher("a%2Eb").token.abs().sum() > 0 and torch.equal(model(x, "b"), before)


@pytest.mark.parametrize("call, words", [
    *[(lambda m, n=n: m.add_session(n, 7), "needs a name") for n in ("", 7)],
    (lambda m: m.add_session("c", 0), "c: a session has units"),
    *[(lambda m, n=n: m.add_session("c", n), "whole number") for n in (2.5, True)],
    (lambda m: m.add_session("c", 3, kind="video"), "no such kind"),
    (lambda m: m(counts(2, 5, 7), None), "does not know this session"),
    (lambda m: M.NDT(5)(counts(2, 5, 7), "c"), "a session that was added"),
    *[(lambda m, x=x: m(x, "a"), "not the session's spikes")
      for x in (counts(5, 7), counts(0, 5, 7), counts(2, 5, 7).numpy())],
    (lambda m: m(1 / counts(2, 5, 7), "a"), "a, trial 0: these are not spike counts"),
    (lambda m: m(counts(2, 5, 7), "a", torch.zeros(2, 5)), "the mask does not fit"),
    (lambda m: m(counts(2, 5, 7), "a", torch.zeros(5, 2, dtype=torch.bool)), "True or False"),
    (lambda m: m.session_parameters("c"), "does not know this session"),
    (lambda m: M.NDT(0), "bins is out of range"),
    (lambda m: M.NDT(10, width=10, heads=3), "multiple of 3"),
    (lambda m: M.NDT(10, dropout=1.0), "dropout is out of range: expected a share"),
    (lambda m: M.forward_prediction(m, counts(2, 5, 7), "a", last=0), "cannot be forecast"),
    (lambda m: M.poisson_nll(torch.zeros(2, 3), torch.zeros(2, 4)), "differ in shape")])
def test_refused(call, words):
    with pytest.raises(ParameterError, match=words): call(made())


def test_traces_may_be_negative():
    model = made()
    model.add_session("worm", 7, kind="traces")
    assert model(torch.randn(2, 5, 7), "worm").shape == (2, 5, 7)
    with pytest.raises(ParameterError, match="worm, trial 0: these are not numbers"):
        model(torch.full((2, 5, 7), math.nan), "worm")


# ---- hiding, forecasting, filling in
def test_what_is_hidden_repeats_and_poisson_nll_is_pytorchs():
    assert M.hide((4, 5), 1.0).all()
    a, b = (M.hide((4, 50), 0.3, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)
    r, x, m = torch.randn(3, 5, 4), counts(3, 5, 4), M.hide((3, 5))
    expected = F.poisson_nll_loss(r, x, reduction="none")
    torch.testing.assert_close(M.poisson_nll(r, x), expected.mean())
    torch.testing.assert_close(M.poisson_nll(r, x, m), expected[m].mean())


@pytest.mark.parametrize("make", [M.NDT, StitchedLinear, StitchedGRU, Smoothing])
def test_forecasts_do_not_look(make):
    model, x = made(make), counts(5, 30, 7)
    model.train()
    told = M.forward_prediction(model, x, "a", last=6)
    assert told.shape == (5, 6, 7) and model.training and not told.requires_grad
    x[:, -6:] = math.nan                                            # not looked at, whatever it is
    assert torch.equal(M.forward_prediction(model, x, "a", last=6), told)
    torch.testing.assert_close(M.forward_prediction(model, x, "a", last=6, batch=2), told)
    x[:, -7] += 3
    if make is not Mean: assert not torch.equal(M.forward_prediction(model, x, "a", 6), told)


@pytest.mark.parametrize("make", [M.NDT, StitchedLinear, StitchedGRU])
def test_fill_in_is_forward(make):
    model = made(make)
    model.add_session("c", 3)
    batches = [("a", counts(4, 30, 7), M.hide((4, 30))), ("c", counts(6, 18, 3), M.hide((6, 18)))]
    with torch.no_grad():
        for told, (name, x, m) in zip(M.fill_in(model.eval(), batches), batches):
            torch.testing.assert_close(told, model(x, name, m)[m])
        model.train()
        streams = lambda *s: [torch.Generator().manual_seed(v) for v in s]
        together = M.fill_in(model, batches, streams(1, 2))
        for i, b in enumerate(batches):
            torch.testing.assert_close(M.fill_in(model, [b], streams(i + 1))[0], together[i])


def test_fill_in_gradients():
    "Leaving rows out of the last layer changes no gradient."
    model, x, m = made(dropout=0.0).double(), counts(4, 30, 7).double(), M.hide((4, 30))
    told = []
    for way in (lambda: M.fill_in(model, [("a", x, m)])[0], lambda: model(x, "a", m)[m]):
        model.zero_grad()
        (way() ** 2).sum().backward()
        told.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*told): torch.testing.assert_close(a, b)


# ---- baselines
def session(x, name="a"):
    n = len(x) // 3
    return Session(name, x[:n], x[n:2 * n], x[2 * n:], 0.02, tuple(range(x.shape[2])), {})


def test_mean_and_smoothing_follow_slow_rates_and_silent_units_have_a_rate():
    s = session(counts(60, 30, 7))
    for per_bin, mean in ((False, s.train.mean((0, 1))), (True, s.train.mean(0))):
        model = made(Mean, per_bin=per_bin).fit(s)
        rate = model(s.test, "a")[0].exp()
        torch.testing.assert_close(rate, mean.clamp(min=rate.min()).expand(30, 7))
    x = counts(30, 30, 7)
    x[..., 2] = 0
    for make in (Mean, Smoothing): assert made(make).fit(session(x))(x, "a").isfinite().all()
    slow_rate = torch.rand(90, 1, 7).mul(3).expand(90, 30, 7).contiguous()
    model = made(Smoothing).fit(session(torch.poisson(slow_rate)))
    assert model.stitcher("a").tau > 8
