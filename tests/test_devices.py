"Training on the best device: the numbers of the CPU, and no step that waits for the device."
import numpy as np
import pytest
import torch
from pretend import PLACE, accelerator

from neurocompanion.core import default_device
from neurocompanion.sessions.baselines import StitchedGRU, StitchedLinear
from neurocompanion.sessions.data import Session
from neurocompanion.sessions.estimators import SpikeForecaster
from neurocompanion.sessions.models import NDT
from neurocompanion.sessions.pretraining import pretrain
from neurocompanion.sessions.selection import rank_sessions
from neurocompanion.sessions.training import fine_tune_many
from neurocompanion.training.population import fit_population
from neurocompanion.worm_gnn import models as gnn
from neurocompanion.worm_gnn import training as gt
from neurocompanion.worm_gnn.data import SHARED_15, simulated_worms
from neurocompanion.worm_gnn.estimators import StateDecoder
from neurocompanion.worm_gnn.experiments import edges as worm_edges
from neurocompanion.worm_gnn.setting import Setting as WormSetting
from neurocompanion.worm_scaling import experiments as scaling
from neurocompanion.worm_scaling.data import Windows
from neurocompanion.worm_scaling.estimators import Forecaster
from neurocompanion.worm_scaling.heads import learn, learn_seeds

torch.set_num_threads(1)


def session(i, trials, units, bins=20):
    "Random counts."
    draw = torch.Generator().manual_seed(i)
    x = torch.poisson(torch.full((trials + 12, bins, units), 0.3), generator=draw)
    return Session(f"session {i}", *x.split([trials, 8, 4]), 0.02, tuple(range(units)), {})


BODIES = {"ndt": lambda: NDT(20, token=12, width=16, heads=2, layers=2, feedforward=24),
          "gru": lambda: StitchedGRU(20, token=6, width=7),
          "linear": lambda: StitchedLinear(20, token=6, history=4)}


def pretrained(body, trials):
    torch.manual_seed(0)
    pool = [session(i, trials, 5 + i, 20 - i) for i in range(3)]
    return pretrain(pool, model=BODIES[body]().to(default_device()), epochs=2, batch=8, lr=1e-3)


def by_pretraining(body):
    def run(trials):
        model, done = pretrained(body, trials)
        return np.r_[done.history.valid_loss, model.stitcher("session 1").decode.bias.tolist()]
    return run


def by_fine_tuning(body):
    def run(trials):
        model = pretrained(body, 16)[0]
        made = fine_tune_many([model, model, pretrained(body, 16)[0]], [
            session(i, trials, 6 + i, 20 - i) for i in (7, 8, 9)], epochs=2, batch=8, lr=1e-2)
        return np.concatenate([t.history.valid_loss for t in made])
    return run


def by_population(trials):
    "With members of other sizes, so that rows go in groups."
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(trials, 4, generator=draw), torch.randn(trials, 1, generator=draw)
    made = fit_population(lambda: torch.nn.Linear(4, 1), lambda m, x, y: (m(x) - y).square().mean(),
                          data, data, seeds=3, epochs=2, batch=8, schedule="cosine", clip=1.0,
                          subsets=[range(trials - 3 * i) for i in range(3)],
                          device=default_device())
    return made.best_loss


def worms(n, seed, seconds=130):
    draw = np.random.default_rng(seed)
    for _ in range(n):
        mask = draw.random(302) < 0.2
        yield draw.standard_normal((seconds, 302)).astype("float32") * mask, mask


def by_scaling(model, head="history"):
    def run(windows):
        parts = [Windows.from_arrays(worms(3, i), n, 30, batch=8, shuffle=not i)
                 for i, n in enumerate((windows, 4))]
        rounds = scaling.Steady(parts[0], windows // 4) if head == "value" else None
        net, _, done = learn(parts[0], parts[1].to(default_device()), model=model, hidden=8,
                             head=head, epochs=2, patience=5, rounds=rounds)
        return np.r_[done.history.valid_loss, net.state_dict()["own" if head == "history" else
                                                              "out.bias"].tolist()]
    return run


def by_seeds(windows):
    mine = [Windows.from_arrays(worms(2, i), windows, 30, batch=8, seed=i) for i in range(2)]
    held = Windows.from_arrays(worms(3, 9), 4, 30, batch=8, shuffle=False)
    made = learn_seeds(mine, held, model="lstm", hidden=6, head="change", epochs=2, seeds=[3, 4])
    return np.concatenate([done.history.valid_loss for _, _, done in made])


STEPS = {  # a training with so many trials or windows, all in batches of eight
    **{f"pretraining {b}": by_pretraining(b) for b in BODIES},
    **{f"fine-tuning {b}": by_fine_tuning(b) for b in BODIES},
    **{f"worm_scaling {m}": by_scaling(m) for m in ("linear", "lstm", "transformer")},
    "worm_scaling, equal steps": by_scaling("linear", "value"), "population": by_population,
    "worm_scaling, seeds": by_seeds}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_does_not_wait(name):
    few, many, train = 16, 32, STEPS[name]
    waited = []
    for n in few, many:
        with accelerator() as waits:
            there = train(n)
            waited.append(dict(waits))
    assert waited[0] == waited[1]                               # twice as many steps
    np.testing.assert_allclose(there, train(many), rtol=2e-5, atol=1e-6)


THREE = [w._replace(y=w.y[:160], x=w.x[:160], trace=w.trace[:160], slope=w.slope[:160])
         for w in simulated_worms(3, 0, SHARED_15, 2, minutes=2)]
CUTS, WHO = gt.cut(THREE, 4), gt.cross_validation(3, None, 4)[::9]
STATES = {"mlp": lambda: gnn.MLP(15), "gnn": lambda: gnn.GNN(15, look=20),
          "own statistics": lambda: gnn.GNN(15, norm="worm", edges="chunk"),
          "node mlp": lambda: gnn.NodeMLP(15), "gat": lambda: gnn.LayerGNN(15, layer="gat")}
ROLLED = {"rnn": lambda: gnn.RNN(15, out=None, hidden=8),
          "gnn": lambda: gnn.GNN(15, out=None, hidden=4, edges="dynamic")}


def states(name, epochs):
    made = gt.train_states(STATES[name], THREE, WHO, CUTS, epochs=epochs, lr=0.01)
    return gt.evaluate_states(made, THREE, CUTS, THREE[:1])[["accuracy", "nll"]]


def rolled(name, epochs):
    how = dict(burn_in=2 if name == "rnn" else 0)
    made = gt.train_trajectories(ROLLED[name], THREE, WHO, CUTS, epochs=epochs, steps=(3, 5), **how)
    return gt.evaluate_trajectories(made, THREE, CUTS, THREE[:1], steps=5, **how)[["mse", "own"]]


@pytest.mark.parametrize("train, name", [*((states, n) for n in STATES),
                                         *((rolled, n) for n in ROLLED)])
def test_networks_of_worms(train, name):
    waited = []
    for epochs in 1, 4:                              # two to warm up, then a graph
        with accelerator() as waits:
            there = train(name, epochs)
            waited.append(sum(waits.values()))
    stacks = len({len(m.worms) for m in WHO})
    assert (waited[1] - waited[0]) / 3 <= 4 * stacks   # training, validation twice, finite?
    np.testing.assert_allclose(there, train(name, 4), rtol=5e-2)


def test_as_many_worms_as_a_gpu_can_bear(monkeypatch):
    made = {}
    for memory in 8e9, 1e5:
        monkeypatch.setattr(gt, "_memory", lambda device, memory=memory: memory)
        with accelerator():
            made[memory] = gt.train_states(STATES["mlp"], THREE, WHO * 2, CUTS, epochs=1)
    together, apart = ([len(p) for p in m.populations] for m in made.values())
    assert len(together) < len(apart) and sum(together) == sum(apart) == 2 * len(WHO)


def test_one_network():
    with accelerator():
        one = gt.train_alone(STATES["gnn"], THREE, WHO[0], CUTS, epochs=1)
        assert {p.device for p in one.parameters()} == {PLACE}


def test_inferred_edges():
    s = WormSetting(experiment="edges", data="simulated", minutes=1, k=3, folds=1, epochs=1,
                    trained_on=5)
    with accelerator(): there = worm_edges(s)
    here = worm_edges(s)
    assert len(here) == len(there) > 200
    np.testing.assert_allclose([r["weight"] for r in there if r["what"] == "edge"],
                               [r["weight"] for r in here if r["what"] == "edge"], rtol=1e-4)


def made_estimators(folder):
    "What estimators say that were trained, written and read again where they were made."
    draw = np.random.default_rng(0)
    traces, counts = draw.standard_normal((200, 6)), draw.poisson(0.5, (30, 20, 5)).astype(float)
    labels = np.where(np.arange(200) // 20 % 2, "left", "right")
    kinds = [(Forecaster(hidden=8, epochs=2, horizon=3, context=10), traces, None),
             (StateDecoder("gnn", epochs=3), traces, labels),
             (SpikeForecaster("ndt", token=6, width=8, epochs=2), counts, None)]
    for i, (one, x, y) in enumerate(kinds):
        one.fit(x, y)
        one.save(folder / f"{i}")
        again = type(one).load(folder / f"{i}")
        seen = x[:, :18] if x.ndim == 3 else x
        told = [np.asarray(v.predict(seen)) for v in (one, again)]
        if y is not None: told = [v == "left" for v in told]
        np.testing.assert_allclose(*told, rtol=1e-5)
        yield told[0]


def test_estimators(tmp_path):
    here = list(made_estimators(tmp_path))
    with accelerator(): there = list(made_estimators(tmp_path))
    for a, b in zip(here, there): np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_rankings():
    def run():
        pool = [session(i, 16, 5 + i) for i in range(4)]
        how = dict(model="ndt", token=6, width=8, heads=2, feedforward=8, epochs=2, batch=8)
        table = rank_sessions(pool[0], pool[1:], seeds=2, tune_epochs=2, take=(), **how)
        return [*table.score, *table.attrs["controls"].values()]
    with accelerator(): there = run()
    np.testing.assert_allclose(there, run(), rtol=1e-4)
