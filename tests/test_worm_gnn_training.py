"Training of the worm GNN: populations equal networks trained alone, masks hide what they should."
import numpy as np
import pytest
import torch

from neurocompanion.core import ParameterError
from neurocompanion.training import members as members_loop
from neurocompanion.worm_gnn import data, experiments
from neurocompanion.worm_gnn.models import GNN, MLP, RNN, LayerGNN, NodeMLP
from neurocompanion.worm_gnn.training import (Member, calibration, cross_validation, cut,
                                              evaluate_states, evaluate_svm, evaluate_trajectories,
                                              probabilities, score, svm, train_alone, train_states,
                                              train_trajectories, windows)

torch.set_num_threads(1)
NODES = 5


@pytest.fixture
def power_cuts(monkeypatch):
    "Takes the numbers of the epochs at whose end the power is cut; counts them."
    def at(*numbers):
        usual, calls = members_loop.judge, []

        def fragile(*args, **more):
            calls.append(1)
            if len(calls) in numbers: raise OSError("power cut")
            return usual(*args, **more)

        monkeypatch.setattr(members_loop, "judge", fragile)
        return calls
    return at


def made_up(seed, steps=320):
    "A worm whose neurons follow two states, with a stretch that is not known."
    draw = np.random.default_rng(seed)
    y = np.repeat(np.arange(60) % 2, draw.integers(10, 30, 60))[:steps]
    drive = np.convolve(2.0 * y - 1, np.exp(-np.arange(20) / 4) / 4)[:steps]
    trace = drive[:, None] * np.linspace(-1, 1, NODES) + 0.2 * draw.standard_normal((steps, NODES))
    y[100:110] = -1
    time = np.arange(steps) / 3
    return data.scaled(data.Worm(f"worm {seed}", None, y, time, data.SHARED_15[:NODES],
                                 ("forward", "reversal"), trace, data.derivative(trace, time),
                                 "made up"))


WORMS = [made_up(0), made_up(1, 304), made_up(2)]
CUTS = cut(WORMS, k=5)
MAKES = {"mlp": lambda: MLP(NODES), "static": lambda: GNN(NODES, look=50),
         "static all": lambda: GNN(NODES), "own": lambda: GNN(NODES, norm="worm"),
         "none": lambda: GNN(NODES, norm="none", self_path="none"),
         "chunk": lambda: GNN(NODES, edges="chunk"), "dynamic": lambda: GNN(NODES, edges="dynamic"),
         "given": lambda: GNN(NODES, edges=torch.eye(NODES)), "node": lambda: NodeMLP(NODES),
         "gat": lambda: LayerGNN(NODES), "gin0": lambda: LayerGNN(NODES, layer="gin0")}


@pytest.mark.parametrize("name, scaling", [*((name, "whole") for name in MAKES), ("mlp", "train"),
                                           ("own", "train"), ("own", "standardised")])
def test_population_is_one_by_one(name, scaling):
    "To 1e-6 in double precision, in companies of several sizes, worms of different length."
    make = lambda: MAKES[name]().double()
    members = [Member((0,), 2), Member((0, 1), 0), Member((1, 2), 3), Member((0,), 2, seed=1)]
    together = train_states(make, WORMS, members, CUTS, epochs=8, scaling=scaling, group=2)
    for i, m in enumerate(members):
        alone = train_alone(make, WORMS, m, CUTS, epochs=8, scaling=scaling)
        for k, v in together.model(i).state_dict().items():
            torch.testing.assert_close(v, alone.state_dict()[k], atol=1e-6, rtol=1e-6)


def test_same_accuracies_after_many_epochs():
    members = cross_validation(3, 1, k=5)[::3]
    together = train_states(lambda: MLP(NODES), WORMS, members, CUTS, epochs=120, patience=80)
    for i, m in enumerate(members):
        alone = train_alone(lambda: MLP(NODES), WORMS, m, CUTS, epochs=120, patience=80)
        for worm in WORMS:
            x = torch.as_tensor(worm.x)[None]
            with torch.no_grad(): p, q = (n(x)[0].softmax(-1) for n in (together.model(i), alone))
            assert abs(score(p, worm.y)["accuracy"] - score(q, worm.y)["accuracy"]) < 0.01


@pytest.mark.parametrize("name", ["mlp", "own", "gat", "trajectory"])
def test_an_interrupted_cross_validation_goes_on(name, tmp_path, power_cuts):
    "Broken off three times, it ends with the same networks, to the last bit."
    members = cross_validation(3, None, k=5)[::4]
    make = (lambda: MLP(NODES, 2, None, 8)) if name == "trajectory" else MAKES[name]
    how = dict(epochs=6, group=3, patience=3) | (dict(ramp=3) if name == "trajectory" else {})
    train = train_trajectories if name == "trajectory" else train_states
    whole = train(make, WORMS, members, CUTS, **how)
    power_cuts(4, 11, 25)
    for _ in range(3):
        with pytest.raises(OSError):
            train(make, WORMS, members, CUTS, **how, checkpoint=tmp_path, save_seconds=0)
    again = train(make, WORMS, members, CUTS, **how, checkpoint=tmp_path, save_seconds=0)
    for i in range(len(members)):
        for a, b in zip(*(t.model(i).state_dict().values() for t in (whole, again))):
            assert torch.equal(a, b)
    assert again.summary.equals(whole.summary)


def test_an_experiment_goes_on_in_its_folder(tmp_path, power_cuts):
    "What a sweep's run has begun under `partial/` is not trained again."

    how = dict(data="simulated", minutes=2, k=3, folds=1, trained_on=0, model="mlp", epochs=5)
    whole = experiments.run("states", **how)
    calls = power_cuts(14)
    with pytest.raises(OSError): experiments.run("states", out=tmp_path, **how)
    kept = sorted(p.name for p in (tmp_path / "checkpoint").iterdir())
    assert kept == ["000.pt", "001.pt", "002.pt"]              # one worm, two worms; three: begun
    done = len(calls)
    assert experiments.run("states", out=tmp_path, **how).equals(whole)
    assert len(calls) - done == 3 * 5                          # three, four and five worms


@pytest.mark.parametrize("norm", ["running", "worm"])
def test_held_back_steps_do_not_train(norm):
    "States of test steps, and unknown ones, change nothing; without edges, nor does activity."
    member, make = Member((0,), 1), lambda: MLP(NODES, norm=norm)
    fold = CUTS[0][1].on(len(WORMS[0].y))
    y, x = WORMS[0].y.copy(), WORMS[0].x.copy()
    y[fold.test] = 1 - y[fold.test].clip(0)
    if norm == "running": x[fold.test] += 5
    changed = [WORMS[0]._replace(y=y, x=x), *WORMS[1:]]
    a, b = (train_states(make, w, [member], CUTS, epochs=5, scaling="as given").model(0)
            for w in (WORMS, changed))
    for v, w in zip(a.state_dict().values(), b.state_dict().values()): assert torch.equal(v, w)
    y = WORMS[0].y.copy()
    y[fold.train] = 1 - y[fold.train].clip(0)
    c = train_states(make, [WORMS[0]._replace(y=y), *WORMS[1:]], [member], CUTS, epochs=5)
    assert not torch.equal(c.model(0).read.head.weight, a.read.head.weight)


def test_evaluation_is_by_hand():
    "Test steps of a training worm, all steps of another; further worms are unseen."
    members = [Member((0,), 1), Member((0, 2), 3)]
    trained = train_states(MAKES["static"], WORMS, members, CUTS, epochs=5)
    table = evaluate_states(trained, WORMS, CUTS, [made_up(9)])
    assert len(table) == 8 and (table.query("worm == 'worm 9'").part == "unseen").all()
    p = probabilities(trained, WORMS[2].x)
    assert p.shape == (2, 320, 2)
    mask = CUTS[2][3].on(320).test
    row = table.query("member == 1 and worm == 'worm 2'").iloc[0]
    assert row.part == "same" and row.steps == (WORMS[2].y[mask] >= 0).sum()
    assert row.accuracy == pytest.approx(score(p[1][mask], WORMS[2].y[mask])["accuracy"])
    assert table.query("member == 0 and worm == 'worm 2'").part.item() == "unseen"


@pytest.mark.parametrize("scaling", ["train", "standardised", "as given"])
def test_features_are_scaled_as_in_training(scaling):
    "A training worm by its training steps, another by all of its own."
    trained = train_states(MAKES["mlp"], WORMS, [Member((0,), 1)], CUTS, epochs=3, scaling=scaling)
    table = evaluate_states(trained, WORMS, CUTS, scaling=scaling)
    fold = CUTS[0][1].on(len(WORMS[0].y))
    for worm, training, part in [(WORMS[0], fold.train, fold.test), (WORMS[1], None, slice(None))]:
        how = "whole" if scaling == "as given" or (scaling == "train" and training is None) \
            else scaling
        if scaling == "as given": training = None
        x = data.scaled(worm, how, training).x
        with torch.no_grad(): p = trained.model(0)(torch.as_tensor(x)[None])[0].softmax(-1)
        found = table[table.worm == worm.name].nll.item()
        assert found == pytest.approx(score(p[part], worm.y[part])["nll"], rel=1e-4)


@pytest.mark.parametrize("members, says", [
    ([], "nobody to train"), ([Member((0,), 2)], "no known state to train or to validate")])
def test_somebody_is_trained_with_known_states(members, says):
    y = WORMS[0].y.copy()
    y[CUTS[0][2].on(len(y)).validation] = -1
    with pytest.raises(ParameterError, match=says):
        train_states(MAKES["mlp"], [WORMS[0]._replace(y=y), *WORMS[1:]], members, CUTS, epochs=1)


def test_training_learns_and_patience_drops_members():
    trained = train_states(MAKES["mlp"], WORMS, cross_validation(3, 2, k=5), CUTS, epochs=150)
    table = evaluate_states(trained, WORMS, CUTS)
    chance = max(np.mean(w.y[w.y >= 0] == s) for w in WORMS for s in (0, 1))
    assert table.groupby("part").accuracy.mean().min() > chance + 0.1
    assert set(trained.summary.stopped) == {"epochs"}
    trained = train_states(MAKES["mlp"], WORMS, [Member((0,), 0)], CUTS, epochs=3000, patience=3)
    assert trained.summary.stopped.item() == "patience"


def test_calibration():
    draw = np.random.default_rng(0)
    p = draw.uniform(0, 1, 200_000)
    y = (draw.uniform(size=p.size) < p).astype(int)
    assert calibration(np.stack([1 - p, p], -1), y) < 0.01
    sure = np.stack([p < 0.5, p >= 0.5], -1).astype(float)
    assert calibration(sure, y) == pytest.approx(0.25, abs=0.01)
    assert np.isnan(score(np.ones((3, 2)) / 2, [-1, -1, -1])["accuracy"])


def test_svm():
    machine = svm(WORMS[0].x, WORMS[0].y)
    assert (machine.predict(WORMS[1].x.reshape(304, -1)) == WORMS[1].y).mean() > 0.7
    members = [Member((0,), 1), Member((0, 2), 3)]
    table = evaluate_svm(WORMS, members, CUTS)
    trained = train_states(MAKES["mlp"], WORMS, members, CUTS, epochs=1)
    same = evaluate_states(trained, WORMS, CUTS)
    keys = ["member", "worm", "part", "steps"]
    a, b = (t.sort_values(keys[:2])[keys].reset_index(drop=True) for t in (table, same))
    assert a.equals(b)
    worms = [WORMS[0], WORMS[1]._replace(y=np.full(len(WORMS[1].y), -1))]   # no known states
    table = evaluate_svm(worms, [Member((0,), 0)], CUTS[:2])
    assert np.isnan(table[table.worm == "worm 1"].accuracy.item())


@pytest.mark.parametrize("make, burn_in", [
    (lambda: MLP(NODES, 2, None, 8), 0), (lambda: NodeMLP(NODES, 2, None, 8), 0),
    (lambda: RNN(NODES, 2, None, 8), 4), (lambda: GNN(NODES, 2, None, 8, "dynamic"), 0),
    (lambda: GNN(NODES, 2, None, 8, torch.eye(NODES)), 0)])
def test_trajectories(make, burn_in):
    members = [Member((0,), 0), Member((0,), 1), Member((1, 2), 2)]
    how = dict(epochs=4, ramp=3, burn_in=burn_in)
    double = lambda: make().double()
    trained = train_trajectories(double, WORMS, members, CUTS, **how)
    single = train_trajectories(double, WORMS, members[1:2], CUTS, **how)
    for k, v in trained.model(1).state_dict().items():
        torch.testing.assert_close(v, single.model(0).state_dict()[k], atol=1e-6, rtol=1e-6)
    table = evaluate_trajectories(trained, WORMS, CUTS, burn_in=burn_in)
    assert len(table) == 3 * 3 * 16 and np.isfinite(table.mse).all()
    x = windows(WORMS[2].x, None, 16, burn_in)
    row = table.query("member == 0 and worm == 'worm 2' and step == 5").iloc[0]
    assert row.stay == pytest.approx(np.square(x[:, burn_in + 5] - x[:, burn_in]).mean(), rel=1e-4)


def test_padded_windows_do_not_count():
    "Batch normalisation of a rollout sees the windows that are there, and no others."
    short, long = made_up(1, 240), made_up(2, 480)
    make = lambda: MLP(NODES, 2, None, 8)
    how = dict(epochs=3, ramp=2)
    alone, beside = (train_trajectories(make, worms, [Member((0,), 0)], cut(worms, 5), **how)
                     for worms in ([short], [short, long]))
    a, b = (t.model(0).model.state_dict() for t in (alone, beside))
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-6)


def test_training_context_with_training_scaling():
    "With features scaled by training steps, nothing held back reaches the weights of a GNN."
    worm, cuts = made_up(3), [data.split(40, 5, False, gap=1)]
    test = cuts[0][0].on(len(worm.y)).test
    trace = worm.trace.copy()
    trace[test] = 7 * np.random.default_rng(0).standard_normal(trace[test].shape)
    other = data.scaled(worm._replace(trace=trace, slope=data.derivative(trace, worm.time)))
    a, b = (train_states(lambda: GNN(NODES), [w], [Member((0,), 0)], cuts, epochs=3,
                         scaling="train").model(0).state_dict() for w in (worm, other))
    for k in a: assert torch.equal(a[k], b[k]), k


def test_edges_from_other_features_and_decay():
    members, make, how = [Member((0,), 0)], lambda: GNN(NODES, look=50), dict(epochs=5)
    train = lambda **more: train_states(make, WORMS, members, CUTS, **how, **more)
    plain, same, decayed = train(), train(edge_scaling="whole"), train(decay=0.1)
    edged = train(edge_scaling="standardised")
    weights = lambda t: t.model(0).read.block.first.weight
    assert torch.equal(weights(plain), weights(same))
    assert not torch.equal(weights(plain), weights(edged))
    assert weights(decayed).norm() < weights(plain).norm()
    table = evaluate_states(edged, WORMS, CUTS, edge_scaling="standardised")
    context = data.scaled(WORMS[1], "standardised").x
    p = probabilities(edged, data.scaled(WORMS[1]).x, context=context)[0]
    found = table[table.worm == "worm 1"].accuracy.item()
    assert found == pytest.approx(score(p, WORMS[1].y)["accuracy"])
