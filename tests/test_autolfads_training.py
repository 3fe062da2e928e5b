"Training of one network: resume, divergence, few trials, hyperparameters on the way, populations."
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import until

from neurocompanion.autolfads import data, models
from neurocompanion.autolfads.models import Hyper
from neurocompanion.autolfads.pbt import SPACE, pbt
from neurocompanion.autolfads.training import (
    Member, finished, maker, ramp_at, sample_validation, train)
from neurocompanion.core import ParameterError, TrainingError

SMALL = dict(ic_encoder=8, ic=4, generator=12, factors=3)
DRIVEN = SMALL | dict(ci_encoder=6, controller=6, inputs=2)
HOW = dict(batch=16, ramp=3, device="cpu", hidden_every=2)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def spikes():
    return data.lorenz("simulated", conditions=4, repeats=10, units=10, steps=15, rate=6.0)


def weights(member): return torch.cat([p.detach().flatten() for p in member.model.parameters()])


def test_a_resumed_member_is_the_one_that_was_not_interrupted(spikes, tmp_path):
    whole, part = (Member.new(spikes, DRIVEN, {}, 5, **HOW) for _ in range(2))
    whole.run(5)
    part.run(2)
    part.save(tmp_path / "a.pt")
    again = Member.new(spikes, DRIVEN, {"lr": 0.1}, 5, **HOW)
    again.load(tmp_path / "a.pt")
    rows = again.run(3)
    assert torch.equal(weights(again), weights(whole)) and again.score == whole.score
    assert again.best_loss == whole.best_loss and again.best_epoch == whole.best_epoch
    assert [r["loss"] for r in rows] == [r["loss"] for r in whole.history[2:]]


def test_a_copy_takes_all_that_was_trained_and_goes_on_by_its_own_seed(spikes, tmp_path):
    a, found = Member.new(spikes, SMALL, {}, 1, **HOW), []
    a.run(3)
    a.save(tmp_path / "a.pt")
    for seed in (1, 2, 1):
        b = Member.new(spikes, SMALL, {"lr": 1e-4}, seed, **HOW)
        b.run(1)
        b.load(tmp_path / "a.pt")
        assert torch.equal(weights(a), weights(b)) and b.hyper == a.hyper and b.score == a.score
        mine, theirs = (list(m.optimiser.state.values()) for m in (b, a))
        assert all(torch.equal(x["exp_avg_sq"], y["exp_avg_sq"]) for x, y in zip(mine, theirs))
        b.update({"lr": 7e-4})
        b.run(1)
        assert {g["lr"] for g in b.optimiser.param_groups} == {7e-4}    # it is changed
        found.append(weights(b))
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_every_trial_is_trained_with_whatever_the_batch(spikes, monkeypatch):
    few, seen = replace(spikes, train=spikes.train[:7], valid=spikes.valid[:2]), []
    real = models.loss
    def watched(model, x, y, *a, **k):
        seen.append(y)
        return real(model, x, y, *a, **k)
    monkeypatch.setattr(models, "loss", watched)
    for batch, sizes in ((500, [7]), (3, [3, 2, 2]), (1, [1] * 7)):
        seen.clear()
        Member.new(few, SMALL, {}, 0, batch=batch, device="cpu").run(1)
        assert [len(y) for y in seen] == sizes
        rows = torch.cat(seen).flatten(1).sum(1).sort().values
        assert torch.equal(rows, torch.as_tensor(few.train).flatten(1).sum(1).sort().values)


def test_the_gradient_is_clipped_and_the_ramp_rises(spikes, monkeypatch):
    norms, real = [], torch.optim.Adam.step
    m = Member.new(spikes, SMALL, {}, 0, **{**HOW, "clip": 1e-3})

    def step(self, *a, **k):
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in grads]).norm()))
        return real(self, *a, **k)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    ramps = [r["ramp"] for r in m.run(5)]
    assert max(norms) <= 1.001e-3 and ramps == [0.25, 0.5, 0.75, 1, 1]
    assert ramp_at(0, 80) == pytest.approx(1 / 81) and m.history[0]["gradient"] > 1


def test_a_diverged_member_can_take_over_a_sound_state(spikes, tmp_path):
    good = Member.new(spikes, SMALL, {}, 0, **HOW)
    bad = Member.new(spikes, SMALL, {"lr": 1e4}, 1, **HOW)
    good.run(2), bad.run(30)
    bad.save(tmp_path / "bad.pt"), good.save(tmp_path / "good.pt")
    assert bad.stopped == "diverged" and math.isnan(bad.score)
    bad.load(tmp_path / "good.pt")
    assert bad.stopped == "epochs" and len(bad.run(1)) == 1 and math.isfinite(bad.score)
    good.load(tmp_path / "bad.pt")
    assert good.stopped == "diverged"


def test_the_best_weights_are_those_of_the_lowest_smoothed_score(spikes):
    m, kept = Member.new(spikes, SMALL, {"lr": 3e-2, "cd_rate": 0.0}, 0, **HOW), {}
    with pytest.raises(TrainingError, match="has not been trained"): finished(m)
    for _ in range(25):
        m.run(1)
        kept[m.epoch] = weights(m)
    t = finished(m)
    scores = [r["score"] for r in m.history]
    assert t.best == min(scores) and t.best_epoch == 1 + int(np.argmin(scores))
    own = torch.cat([p.detach().flatten() for p in t.model.parameters()])
    assert torch.equal(own, kept[t.best_epoch]) and not t.model.training
    assert t.rates(samples=2).rates.shape == spikes.valid.shape


def test_rate_decay_and_patience(spikes):
    m = Member.new(spikes, SMALL, {"lr": 1e-2}, 0, **{**HOW, "decay": 0.5, "wait": 2})
    m.best_loss = -1.0                                        # nothing is an improvement any more
    m.run(6)
    assert [r["lr"] for r in m.history] == [1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3]
    m.settings = m.settings._replace(lr_stop=1e-3)
    m.run(50)
    assert m.stopped == "learning rate" and m.hyper.lr == 1e-2 and m.factor < 0.1
    m.update({"lr": 1e-2})                               # as a search does every generation
    assert m.factor < 0.1
    m = Member.new(spikes, SMALL, {}, 0, **{**HOW, "patience": 3})
    m.best_loss = -1.0
    assert len(m.run(50)) == 3 and m.stopped == "patience"


def test_sample_validation_sees_a_network_that_passes_spikes_through():
    class Echo(torch.nn.Module): head = "poisson"
    y = torch.as_tensor(np.random.default_rng(0).poisson(0.5, (40, 20, 6)).astype(np.float32))

    def nll(model, x, y, external=None, mask=None, **_):
        each = torch.nn.functional.poisson_nll_loss(0.8 * x + 0.1, y, log_input=False, full=True,
                                                    reduction="none")
        return each[mask].mean().item()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "nll", nll)
        echo = sample_validation(Echo(), y, y)
        patch.setattr(models, "nll", lambda m, x, y, e=None, mask=None, **k: nll(
            m, torch.full_like(x, 0.5), y, e, mask))
        fair = sample_validation(Echo(), y, y)
    assert echo["gap"] > 0.3 and abs(fair["gap"]) < 1e-2


@pytest.mark.parametrize("forward, units", [(0, 3), (4, 0), (4, 3)])
def test_withheld_units_and_steps_are_trained(spikes, forward, units):
    d = data.withhold(spikes, units, forward)
    m = Member.new(d, DRIVEN, {}, 0, **HOW)
    before = m.model.readout.bias.detach().clone()
    row = m.run(2)[-1]
    assert math.isfinite(row["hidden"]) and m.model.encoded == 10 - units
    assert (m.model.readout.bias[-3:] != before[-3:]).all()


def test_calcium_and_external_inputs(spikes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 12, 6))
    d = data.from_arrays(x, data.split(20), 0.3, kind="traces", external=x[..., :2])
    m = Member.new(d, DRIVEN, {}, 0, **HOW)
    rows = m.run(4)
    assert m.model.head == "gaussian" and m.model.external == 2
    assert rows[-1]["valid"] < rows[0]["valid"] and math.isfinite(rows[-1]["gap"])


def test_checkpoints_belong_to_one_run(spikes, tmp_path):
    path = tmp_path / "run.pt"
    train(spikes, SMALL, {}, 2, seed=1, checkpoint=path, **HOW)
    for change in (dict(hyper={"lr": 1e-3}), dict(batch=7), dict(sizes=DRIVEN)):
        args = dict(sizes=SMALL, hyper={}, epochs=3, seed=1, checkpoint=path, **HOW) | change
        with pytest.raises(TrainingError, match="belongs to another run"): train(spikes, **args)
    anew = train(spikes, SMALL, {}, 2, seed=2, checkpoint=path, resume=False, **HOW)
    assert anew.member.epoch == 2


def test_a_killed_run_goes_on(spikes, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(f"""
        import sys, torch
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        torch.set_num_threads(1)
        from test_autolfads_training import HOW, SMALL, data, train
        d = data.lorenz("simulated", conditions=4, repeats=10, units=10, steps=15, rate=6.0)
        train(d, SMALL, {{}}, 4000, seed=3, checkpoint=sys.argv[1], save_seconds=0.05, **HOW)
    """))
    path = tmp_path / "a.pt"
    run = subprocess.Popen([sys.executable, str(script), str(path)])
    epochs = lambda: path.exists() and torch.load(path, weights_only=True)["members"][0]["epoch"]
    until(lambda: epochs() or run.poll() is not None, 60)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    done = epochs()
    found = train(spikes, SMALL, {}, done + 2, seed=3, checkpoint=path, **HOW)
    straight = train(spikes, SMALL, {}, done + 2, seed=3, **HOW)
    assert done >= 1 and torch.equal(weights(found.member), weights(straight.member))


def test_a_population_of_networks(spikes, tmp_path):
    make = maker(spikes, SMALL, **HOW)
    how = dict(members=3, epochs=2, lead=2, generations=3, seed=0, window=None)
    here = pbt(make, SPACE, engine="serial", **how)
    there = pbt(make, SPACE, workers=2, out=tmp_path, **how)
    assert here.table.equals(there.table)
    assert here.epochs["loss"].tolist() == there.epochs["loss"].tolist()
    lr = here.table.groupby("generation")["lr"].nunique()
    assert lr[0] == 1 and lr[2] > 1                       # the learning rate is perturbed
    best = there.member()
    assert best.score == there.best["score"]
    assert finished(best).rates(samples=2).rates.shape == spikes.valid.shape


@pytest.mark.parametrize("call, words", [
    (dict(epochs=0), "epochs is out of range"), (dict(batch=0), "batch is out of range"),
    (dict(hyper={"lr": -1}), "lr is out of range"),
    (dict(smoothing=0), "smoothing is out of range"), (dict(rampe=3), "no such setting"),
    (dict(hyper=Hyper(dropout=1.0)), "dropout is out of range")])
def test_bad_arguments_are_named(spikes, call, words):
    args = dict(sizes=SMALL, epochs=1) | HOW | call
    with pytest.raises(ParameterError, match=words): train(spikes, **args)
