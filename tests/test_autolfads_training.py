"Training of one network: resume, divergence, few trials, hyperparameters on the way, populations."
import copy
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
import replay
import torch
from processes import until

from neurocompanion.autolfads import data, models, training
from neurocompanion.autolfads.models import Hyper
from neurocompanion.autolfads.pbt import SPACE, pbt
from neurocompanion.autolfads.training import (
    Member, finished, maker, ramp_at, sample_validation, together, train)
from neurocompanion.core import ParameterError, TrainingError
from neurocompanion.fast import graph

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
    m.best_loss = m.mark = -1.0                               # nothing is an improvement any more
    m.run(6)
    assert [r["lr"] for r in m.history] == [1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3]
    m.settings = m.settings._replace(lr_stop=1e-3)
    m.run(50)
    assert m.stopped == "learning rate" and m.hyper.lr == 1e-2 and m.factor < 0.1
    m.update({"lr": 1e-2})                               # as a search does every generation
    assert m.factor < 0.1
    m = Member.new(spikes, SMALL, {}, 0, **{**HOW, "patience": 3})
    m.best_loss = m.mark = -1.0
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
    (dict(optimiser="sgd"), "no such optimiser"),
    (dict(hyper=Hyper(dropout=1.0)), "dropout is out of range")])
def test_bad_arguments_are_named(spikes, call, words):
    args = dict(sizes=SMALL, epochs=1) | HOW | call
    with pytest.raises(ParameterError, match=words): train(spikes, **args)


# ---- several as one, and on a GPU
HYPERS = {}, {"lr": 1e-2, "dropout": 0.1, "l2_gen": 0.5}, {"cd_rate": 0.2, "kl_ic": 1e-3}


def some(spikes, hypers=HYPERS, sizes=DRIVEN, **how):
    return [Member.new(spikes, sizes, h, s, **{**HOW, **how}) for s, h in enumerate(hypers)]


def close(ours, theirs, eps=2e-6):
    "The same rows but for rounding, and the same weights: those that train, and the best."
    for a, b in zip(ours, theirs, strict=True):
        assert (a.epoch, a.step, a.stopped, a.best_epoch) == (b.epoch, b.step, b.stopped,
                                                               b.best_epoch)
        for x, y in zip(a.history, b.history, strict=True):
            # a gap is a difference of four numbers near 1
            assert y == pytest.approx(x, rel=eps, abs=eps, nan_ok=True)
        pairs = (a.model.state_dict(), b.model.state_dict()), (a.weights or {}, b.weights or {})
        for x, y in pairs:
            for k in x: torch.testing.assert_close(y[k].cpu(), x[k].cpu(), rtol=eps, atol=10 * eps)


def calcium():
    x = np.random.default_rng(0).standard_normal((20, 12, 6))
    return data.from_arrays(x, data.split(20), 0.3, kind="traces", external=x[..., :2])


@pytest.mark.parametrize("kind, sizes, how", [
    ("lorenz", DRIVEN, {}), ("lorenz", SMALL, dict(batch=9, optimiser="adamw", weight_decay=0.02)),
    ("withheld", DRIVEN, dict(batch=500, clip=1.0)), ("traces", DRIVEN, dict(decay=0.5, wait=1)),
    ("traces", SMALL, dict(patience=1))])
def test_a_stack_is_its_members_one_by_one(spikes, kind, sizes, how):
    d = {"lorenz": spikes, "withheld": data.withhold(spikes, 3, 4), "traces": calcium()}[kind]
    alone, stack = (some(d, sizes=sizes, **how) for _ in range(2))
    for m in alone: m.run(5)
    found = together(stack, 3), together(stack, 2)             # as if it had not been interrupted
    assert [len(a) + len(b) for a, b in zip(*found)] == [len(m.history) for m in alone]
    close(alone, stack, 2e-5 if kind == "traces" else 2e-6)


def test_a_stack_without_the_fast_parts(spikes, monkeypatch):
    monkeypatch.setenv("NEUROCOMPANION_FAST", "no")
    alone, stack = (some(spikes) for _ in range(2))
    for m in alone: m.run(3)
    together(stack, 3)
    close(alone, stack)


def test_a_stack_loses_a_member_and_takes_apart_what_differs(spikes, tmp_path):
    hypers = {"lr": 1e4}, {}, {"cd_rate": 0.0}, {"dropout": 0.0}, {"l2_con": 0.0, "l2_gen": 0.0}
    alone, stack = (some(spikes, hypers) for _ in range(2))
    for m in alone: m.run(4)
    rows = together(stack, 4)
    assert stack[0].stopped == "diverged" and stack[0].weights is None and len(rows[0]) == 1
    close(alone, stack)
    assert all(p.isfinite().all() for p in stack[0].model.parameters())
    assert together(stack, 1)[0] == []                         # it has no more to say …
    stack[1].save(tmp_path / "a.pt")
    stack[0].load(tmp_path / "a.pt")
    stack[0].update({"lr": 1e-3})
    assert len(together(stack, 1)[0]) == 1 and stack[0].stopped == "epochs"    # … until it is well


def test_members_of_other_data_are_no_stack(spikes):
    a, b = some(spikes, ({},)), some(data.withhold(spikes, 3, 4), ({},))
    with pytest.raises(TrainingError, match="cannot train together"): together(a + b, 1)


def test_every_operation_has_an_axis_for_members(spikes):
    before = torch._C._functorch._is_vmap_fallback_enabled()
    torch._C._functorch._set_vmap_fallback_enabled(False)      # else: one after the other, silently
    try:
        for way in ("yes", "no"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("NEUROCOMPANION_FAST", way)
                together(some(spikes), 2)
                together(some(calcium()), 2)
    finally: torch._C._functorch._set_vmap_fallback_enabled(before)


def test_a_search_by_a_stack_is_the_search_one_by_one_and_engines_can_change(spikes, tmp_path):
    make, how = maker(spikes, SMALL, **HOW), dict(members=5, epochs=1, lead=1, seed=0, window=None)
    one = pbt(make, SPACE, engine="serial", generations=4, **how)
    many = pbt(make, SPACE, engine="stacked", generations=4, **how)
    hyper = ["generation", "member", "parent", "copied", *SPACE]
    assert one.table[hyper].equals(many.table[hyper]) and one.table["copied"].any()
    np.testing.assert_allclose(many.table[["score", "best"]], one.table[["score", "best"]], 1e-6)
    for engine, generations in (("stacked", 1), ("serial", 2), ("stacked", 3), ("processes", 4)):
        mixed = pbt(make, SPACE, engine=engine, generations=generations, out=tmp_path, **how)
    assert mixed.table[hyper].equals(one.table[hyper])
    close([one.member(0)], [mixed.member(0)])


def test_a_gpu_repeats_what_was_recorded_whatever_changes(spikes):
    alone, stack = (some(spikes, batch=9, hidden_every=1) for _ in range(2))
    change = {"lr": 1e-3, "dropout": 0.6, "cd_rate": 0.1, "kl_ic": 1e-2, "kl_co": 1e-3,
              "l2_gen": 1.0, "l2_con": 0.01}
    with replay.graphs() as made:
        together(stack, 4)
        assert len(made) == 3                                  # a step, and two ways to judge
        for m in stack: m.update(change)
        together(stack, 2)
        assert len(made) == 3
    for m in alone: m.run(4), m.update(change), m.run(2)
    close(alone, stack)


def test_two_sizes_of_a_batch_are_two_graphs(spikes):
    few = replace(spikes, train=spikes.train[:7])              # 3, 2 and 2 trials
    alone, stack = (some(few, ({},), batch=3, hidden_every=1) for _ in range(2))
    with replay.graphs() as made: together(stack, 4)
    alone[0].run(4)
    assert len(made) == 4
    close(alone, stack)


def test_a_number_that_is_not_in_a_tensor_is_noticed(spikes, monkeypatch):
    real, alone, stack = models.loss, some(spikes, ({},)), some(spikes, ({},))
    alone[0].run(6)
    monkeypatch.setattr(models, "loss", lambda *a, ramp=1.0, **k: real(
        *a, ramp=ramp_at(stack[0].epoch, 3), **k))
    with replay.graphs(): together(stack, 6)
    assert alone[0].history[0] == pytest.approx(stack[0].history[0], nan_ok=True)
    with pytest.raises(AssertionError): close(alone, stack)


def test_a_step_waits_for_nothing_and_an_epoch_once(monkeypatch):
    import pretend                                # not where there is a GPU: it would be in the way
    d = data.lorenz("simulated", conditions=2, repeats=5, units=4, steps=4, rate=6.0)
    sizes, real = dict(ic_encoder=3, ic=2, generator=3, factors=2, ci_encoder=2, controller=2,
                       inputs=1), training.Stack.train
    wrong = (lambda x: float(x.sum()), lambda x: x[x > 0], lambda x: x.cpu(), lambda x: x.tolist(),
             lambda x: x.add_(torch.ones(3).to(x)))
    with pretend.accelerator() as waits:
        m = Member.new(d, sizes, {}, 0, batch=8, hidden_every=1)
        m.run(1)

        def waited(epochs):
            waits.clear()
            together([m], epochs)
            once = {line: n for line, n in waits.items() if "sampled()" in line or "int(" in line}
            assert sorted(once.values()) == [1, epochs]  # how far it was, and what an epoch came to
            return sum(waits.values()) - sum(once.values())

        assert m.model.readout.weight.device.type == "pretend" and not waited(3)
        for act in wrong:
            monkeypatch.setattr(training.Stack, "train", lambda self, *given, act=act: (
                act(torch.ones(3, device=self.device)), real(self, *given))[1])
            assert waited(1)
    assert m.stopped == "epochs" and m.epoch == 4 + len(wrong)


# ---- these need a GPU
GPU = "cuda"


@pytest.fixture
def exact(monkeypatch): monkeypatch.setattr(training._Together, "tf32", False)


@pytest.mark.gpu
@pytest.mark.parametrize("kind, sizes", [("lorenz", DRIVEN), ("lorenz", SMALL), ("traces", DRIVEN)])
def test_a_gpu_trains_what_a_processor_trains(spikes, exact, kind, sizes):
    d = spikes if kind == "lorenz" else calcium()
    here, there = (some(d, sizes=sizes, hidden_every=1, device=v) for v in ("cpu", GPU))
    for m in here + there: m.run(6)
    close(here, there, 3e-4)


@pytest.mark.gpu
def test_a_gpu_gives_the_gradient_of_a_processor(spikes):
    x, ask, found = torch.as_tensor(spikes.train), graph.Asking(), []
    loss = lambda model, device, tape: models.loss(model, x.to(device), x.to(device),
                                                   generator=tape)[0]
    model = models.LFADS(10, 15, **DRIVEN)
    with torch.no_grad(): loss(copy.deepcopy(model).to("meta"), "meta", ask)
    keys, noise = torch.empty(ask.sizes[0], 2, dtype=torch.int32), torch.empty(ask.sizes[1])
    graph.lay(ask.asked, torch.Generator().manual_seed(1), keys, noise)
    for device in "cpu", GPU:
        own = copy.deepcopy(model).to(device)
        total = loss(own, device, graph.Tape(keys.to(device), noise.to(device)))
        found.append([total.detach(), *torch.autograd.grad(total, own.parameters())])
    for here, there in zip(*found):
        if here.numel(): torch.testing.assert_close(there.cpu(), here, rtol=0,
                                                    atol=1e-4 * float(here.abs().max()))


@pytest.mark.gpu
def test_a_graph_is_the_step_without_one(spikes, exact, monkeypatch):
    with_one, without = (some(spikes, batch=9, hidden_every=1, device=GPU) for _ in range(2))
    change = {"lr": 1e-3, "dropout": 0.5, "kl_ic": 1e-2}
    for group, recorded in ((with_one, True), (without, False)):
        with monkeypatch.context() as patch:
            if not recorded: patch.setattr(graph, "_records", lambda device: False)
            together(group, 4)
            kinds = len(group[0].team.stack.step.graphs)
            for m in group: m.update(change)
            together(group, 2)
            assert len(group[0].team.stack.step.graphs) == kinds == recorded
    close(without, with_one, 3e-5)


@pytest.mark.gpu
def test_a_stack_on_a_gpu_is_its_members(spikes, exact):
    alone, stack = (some(spikes, device=GPU) for _ in range(2))
    for m in alone: m.run(5)
    together(stack, 5)
    close(alone, stack, 1e-4)


@pytest.mark.gpu
def test_a_search_on_a_gpu_is_a_stack_and_goes_on_in_processes(spikes, tmp_path):
    make, how = maker(spikes, SMALL, **{**HOW, "device": GPU}), dict(
        members=4, epochs=2, seed=0, window=None, out=tmp_path)
    assert make.engine == "stacked"
    first = pbt(make, SPACE, generations=2, **how)
    found = pbt(make, SPACE, generations=3, engine="processes", workers=2, **how)
    assert found.table[:8].equals(first.table) and np.isfinite(found.table["score"]).all()
    assert finished(found.member()).rates(samples=2).rates.shape == spikes.valid.shape


@pytest.mark.gpu
def test_rounded_factors_train_as_well(spikes):
    here, there = (some(spikes, device=v) for v in ("cpu", GPU))
    for m in here + there: m.run(10)
    for a, b in zip(here, there): assert b.score == pytest.approx(a.score, rel=1e-2)
