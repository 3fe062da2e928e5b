"Pretraining, fine-tuning together and alone, scores, files."
import copy

import numpy as np
import pytest
import torch

from neurocompanion.core import ParameterError, TrainingError
from neurocompanion.sessions import models as M
from neurocompanion.sessions import pretraining as P
from neurocompanion.sessions import training as T
from neurocompanion.sessions.baselines import StitchedGRU, StitchedLinear
from neurocompanion.sessions.data import Session
from neurocompanion.training import members as loop
from neurocompanion.training.metrics import bits_per_spike

SMALL = dict(bins=20, token=10, width=16, heads=2, layers=2, feedforward=24)
EXACT = dict(rtol=0, atol=0)
pytestmark = pytest.mark.usefixtures("one_thread")


def made(name, trials=(20, 4, 4), units=6, bins=20, seed=0, kind="spikes"):
    "A session whose units follow a slow common rate."
    draw = torch.Generator().manual_seed(seed)
    rate = torch.rand(sum(trials), 1, 1, generator=draw) * torch.ones(1, bins, units)
    x = torch.poisson(rate, generator=draw)
    if kind == "traces": x = x - 0.5 + 0.1 * torch.randn(x.shape, generator=draw)
    return Session(name, *x.split(trials), 0.02, tuple(range(units)), {"kind": kind})


@pytest.fixture(scope="module")
def pool():
    return [made("A"), made("B", (37, 5, 3), 6, seed=1), made("C", (9, 3, 3), 11, seed=2),
            made("D", (17, 2, 2), 4, 15, seed=3)]


@pytest.fixture(scope="module")
def body(pool): return P.pretrain(pool[:2], epochs=2, lr=5e-3, settings=SMALL)[0]


def own(t): return [p.detach().clone() for p in t.model.session_parameters(t.session)]


def same(a, b, exact=False):
    assert (a.session, a.seed, a.best_epoch, a.stopped) == (b.session, b.seed, b.best_epoch,
                                                            b.stopped)
    for k in ("train_loss", "valid_loss"):
        torch.testing.assert_close(*(torch.tensor([r[k] for r in t.rows]) for t in (a, b)),
                                   **(EXACT if exact else dict(rtol=1e-4, atol=1e-5)))
    for p, q in zip(own(a), own(b)):
        torch.testing.assert_close(p, q, **(EXACT if exact else dict(rtol=1e-3, atol=1e-4)))


# ---- batches
def test_batches_change_and_repeat(pool):
    told = []
    for seed in (1, 1, 2):
        batches = P.Batches(pool)
        batches.generator.manual_seed(seed)
        told.append([[m for [(*_, m)] in batches] for _ in range(2)])
    flat = lambda e: torch.cat([m.flatten() for m in e]).tolist()
    assert flat(told[0][0]) == flat(told[1][0]) != flat(told[2][0])
    assert flat(told[0][0]) != flat(told[0][1])


# ---- pretraining
def test_pretraining_learns_from_its_own_random_numbers(pool):
    a, run = P.pretrain(pool, epochs=8, lr=1e-2, seed=3, settings=SMALL)
    before = torch.get_rng_state()
    c, _ = P.pretrain(pool, epochs=1, seed=4, settings=SMALL)
    T.fine_tune(c, pool[2], epochs=1)
    assert torch.equal(torch.get_rng_state(), before)         # others' random numbers stay
    assert run.best_loss < run.rows[0]["valid_loss"]
    assert not torch.equal(a.positions, c.positions)
    assert list(a.sessions) == list("ABCD") and not a.training


def test_pretraining_resumes(pool, tmp_path):
    how = dict(epochs=4, lr=5e-3, settings=SMALL)
    whole, run = P.pretrain(pool, **how)

    def stop(state):
        if state.epoch == 2: raise KeyboardInterrupt

    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        P.pretrain(pool, **how, checkpoint=path, save_seconds=0, measure=lambda s: stop(s) or {})
    resumed, found = P.pretrain(pool, **how, checkpoint=path)
    assert [r["valid_loss"] for r in found.rows] == [r["valid_loss"] for r in run.rows]
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters()))
    with pytest.raises(TrainingError, match="another run"):
        P.pretrain(pool[:3], **how, checkpoint=path)


@pytest.mark.parametrize("make", [StitchedLinear, StitchedGRU])
def test_other_models(pool, make):
    torch.manual_seed(0)
    model, run = P.pretrain(pool[:3], model=make(20), epochs=3, lr=1e-2)
    tuned = T.fine_tune_many(model, pool[2:], epochs=3, lr=1e-2)
    for t, s in zip(tuned, pool[2:]): same(t, T.fine_tune(model, s, epochs=3, lr=1e-2))
    assert np.isfinite(P.evaluate(tuned[0].model, pool[2]).pooled)


def test_refused(pool, body):
    for call, words in [
            (lambda: P.pretrain(pool, epochs=0, settings=SMALL), "epochs is out of range"),
            (lambda: P.pretrain(pool, epochs=1, settings=SMALL | dict(bins=17)), "at most 17 bins"),
            (lambda: T.fine_tune_many(body, []), "sessions does not fit"),
            (lambda: T.fine_tune_many(body, pool, seeds=[1, 2]), "seeds does not fit the rest"),
            (lambda: T.fine_tune(body, pool[0], batch=0), "batch is out of range"),
            (lambda: P.evaluate(body, pool[0], last=21), "cannot be forecast")]:
        with pytest.raises(ParameterError, match=words): call()


@pytest.mark.parametrize("threads", [1, 2])
def test_one_that_diverges_is_set_aside(pool, body, threads):
    "The loss of one session is not a number from its second epoch on; the others never notice."
    torch.set_num_threads(threads)
    how, usual, calls = dict(epochs=4, lr=1e-2), T.mean_loss, []

    def spoilt(told, target, kind):
        loss = usual(told, target, kind)
        if target.shape[1] != 11: return loss                          # C alone has 11 units
        calls.append(1)
        return loss * (np.nan if len(calls) > 2 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(T, "mean_loss", spoilt)
        with pytest.warns(UserWarning, match="1 of 4 members .* session C"):
            mixed = T.fine_tune_many(body, pool, **how)
    assert [t.stopped for t in mixed] == ["epochs", "epochs", "diverged", "epochs"]
    assert (mixed[2].best_epoch, len(mixed[2].rows)) == (1, 2)
    same(mixed[0], T.fine_tune(body, pool[0], **how))
    assert all(p.isfinite().all() for p in own(mixed[2]))


# ---- fine-tuning
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("how", [dict(epochs=4, lr=1e-2), dict(epochs=30, lr=5e-2, patience=2)])
def test_together_is_alone_in_packs_of_any_size(pool, body, monkeypatch, threads, how):
    alone = [T.fine_tune(body, s, seed=i, **how) for i, s in enumerate(pool)]
    torch.set_num_threads(threads)
    together = lambda: T.fine_tune_many(body, pool, seeds=[0, 1, 2, 3], **how)
    for t, a in zip(together(), alone): same(t, a)
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(T, "_packs", lambda jobs, part: [[j] for j in jobs])
    for t, a in zip(together(), alone): same(t, a)
    if "patience" in how:                                                  # they end apart
        assert len({len(t.rows) for t in alone}) > 1 and "patience" in {t.stopped for t in alone}


def test_seeds_and_bodies(pool, body):
    other, _ = P.pretrain(pool[:1], epochs=1, lr=5e-3, seed=9, settings=SMALL)
    seeds = T.fine_tune_many(body, pool[3], seeds=[10, 20, 10], epochs=2, lr=1e-2)
    same(seeds[0], seeds[2])
    mixed = T.fine_tune_many([body, other, body], pool[3], epochs=2, lr=1e-2)
    same(mixed[0], mixed[2])
    same(mixed[1], T.fine_tune(other, pool[3], epochs=2, lr=1e-2))


def test_the_body_is_frozen_and_so_is_the_token_if_asked(pool, body):
    before = copy.deepcopy(body.state_dict())
    flags = [p.requires_grad for p in body.parameters()]
    tuned = T.fine_tune(body, pool[2], epochs=2, lr=1e-2)
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())
    assert [p.requires_grad for p in body.parameters()] == flags
    assert list(body.sessions) == ["A", "B"] and list(tuned.model.sessions) == ["C"]
    assert all(p.grad is None for p in body.shared_parameters())
    mean = torch.stack([body.stitcher(n).token for n in "AB"]).mean(0)
    assert not torch.equal(tuned.model.stitcher("C").token, mean)
    kept = T.fine_tune(body, pool[2], epochs=2, lr=1e-2, train_token=False)
    torch.testing.assert_close(kept.model.stitcher("C").token, mean)
    assert kept.model.stitcher("C").token.requires_grad                     # afterwards as usual


def test_it_is_the_plain_loop(pool, body):
    "The same as a loop with PyTorch's own parts: one batch, no dropout, bins hidden alike."
    s, flat = pool[2], lambda optimiser, steps: torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    still = copy.deepcopy(body)
    still.dropout = 0.0
    tuned = T.fine_tune(still, s, seed=5, epochs=3, lr=1e-2, schedule=flat, start="usual")
    model = M.beside(still)
    model.add_session("C", 11, seed=P.stream(5, "C", "stitchers"))
    params = model.session_parameters("C")
    optimiser = torch.optim.AdamW(params, 1e-2, weight_decay=0.01)
    order = torch.Generator().manual_seed(P.stream(5, "C", "order"))
    losses = []
    for _ in range(3):
        x = s.train[torch.randperm(len(s.train), generator=order)]
        mask = M.hide(x.shape[:2], 0.3, order)
        loss = M.poisson_nll(model(x, "C", mask), x, mask)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        losses.append(loss.item())
    assert losses == pytest.approx([r["train_loss"] for r in tuned.rows], rel=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_fine_tuning_resumes(pool, body, tmp_path, monkeypatch, threads):
    torch.set_num_threads(threads)
    how, path = dict(epochs=5, lr=1e-2, patience=3), tmp_path / "run.pt"
    whole, usual = T.fine_tune_many(body, pool, **how), loop.judge

    def broken(jobs, *rest):
        if jobs[0].epoch == 3: raise KeyboardInterrupt
        return usual(jobs, *rest)

    monkeypatch.setattr(loop, "judge", broken)
    with pytest.raises(KeyboardInterrupt):
        T.fine_tune_many(body, pool, **how, checkpoint=path, save_seconds=0)
    monkeypatch.setattr(loop, "judge", usual)
    resumed = T.fine_tune_many(body, pool, **how, checkpoint=path, save_seconds=0)
    for a, b in zip(whole, resumed): same(a, b, exact=threads == 1)
    again = T.fine_tune_many(body, pool, **how, checkpoint=path)             # nothing left to do
    for a, b in zip(resumed, again): same(a, b, exact=True)
    for call in (lambda: T.fine_tune_many(body, pool[:3], **how, checkpoint=path),
                 lambda: T.fine_tune_many(body, pool, **how | dict(lr=1e-3), checkpoint=path)):
        with pytest.raises(TrainingError, match="belongs to another run"): call()
    path.write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match="no readable checkpoint"):
        T.fine_tune_many(body, pool, **how, checkpoint=path)


def test_traces(pool):
    worms = [made(n, kind="traces", seed=i) for i, n in enumerate(("w1", "w2"))]
    body, run = P.pretrain(worms, epochs=12, lr=1e-2, settings=SMALL)
    assert run.best_loss < run.rows[0]["valid_loss"]
    score = P.evaluate(T.fine_tune(body, worms[1], epochs=3, lr=1e-2).model, worms[1])
    assert score.pooled <= 1


# ---- scores and files
def test_evaluate_is_the_metric(pool, body):
    for part, last in (("test", None), ("valid", 7)):
        x, n = getattr(pool[1], part), last or 2
        rate = M.forward_prediction(body, x, "B", n).exp()
        score = P.evaluate(body, pool[1], part, last=last)
        assert score.pooled == pytest.approx(bits_per_spike(rate, x[:, -n:]))
        assert score.per_unit == pytest.approx(bits_per_spike(rate, x[:, -n:], per_neuron=True))
        assert score[4:] == (len(x), n, x[:, -n:].sum().item())


def test_models_are_kept(tmp_path):
    gru = StitchedGRU(20)
    gru.add_session("a.b", 3)
    P.save_model(tmp_path / "g.pt", gru)
    assert P.load_model(tmp_path / "g.pt", StitchedGRU).sessions == {"a.b": 3}
    with pytest.raises(TrainingError, match="a model of kind StitchedGRU"):
        P.load_model(tmp_path / "g.pt")
    with pytest.raises(FileNotFoundError): P.load_model(tmp_path / "none.pt")
