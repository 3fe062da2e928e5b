"A population equals its members trained one by one; what cannot be stacked says so."

import functools, random, signal, warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neurocompanion import core
from neurocompanion.core import ParameterError, TrainingError
from neurocompanion.training.fit import fit
from neurocompanion.training.population import fit_population
from neurocompanion.training.schedules import one_cycle, plateau

draw = torch.Generator().manual_seed(0)
RULE = torch.randn(30, 7, generator=draw, dtype=torch.float64)


def labelled(n):
    x = torch.randn(n, 30, generator=draw, dtype=torch.float64)
    return x, (x @ RULE + 2 * torch.randn(n, 7, generator=draw, dtype=torch.float64)).argmax(1)


DATA, VALID = labelled(200), labelled(90)
EQUAL = [torch.randperm(200, generator=draw)[:150] for _ in range(3)]
RAGGED = [torch.randperm(200, generator=draw)[:n] for n in (150, 70, 31)]


def between(*layers): return nn.Sequential(nn.Linear(30, 16), *layers, nn.Linear(16, 7))
def perceptron(): return between(nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
def normed(): return between(nn.ReLU(), nn.BatchNorm1d(16))
def dropping(): return between(nn.Dropout(0.5))
def mean(model, x, y): return F.cross_entropy(model(x), y)
def by_sample(model, x, y): return F.cross_entropy(model(x), y, reduction="none")


def weighted(model, x, y):
    counts = y > 2
    return F.cross_entropy(model(x), torch.where(counts, y, -1), ignore_index=-1), counts.sum()


CASES = {
    "plain": {}, "patience": dict(epochs=40, patience=3, lr=[1e-2, 3e-3, 3e-2]),
    "subsets": dict(subsets=EQUAL), "ragged, in groups": dict(subsets=RAGGED),
    "masks": dict(subsets=[torch.isin(torch.arange(200), s) for s in EQUAL]),
    "ragged, filled up": dict(subsets=RAGGED, loss=by_sample), "whole": dict(batch=None, lr=1e-2),
    "whole, ragged, filled up": dict(batch=None, subsets=RAGGED, loss=by_sample, patience=4,
                                     lr=0.03, epochs=25),
    "whole, ragged, in groups": dict(batch=None, subsets=RAGGED), "batch norm": dict(make=normed),
    "batch norm, ragged": dict(make=normed, subsets=RAGGED, loss=by_sample, patience=3, lr=0.01),
    "adam, clipped": dict(optimiser="adam", clip=0.5, weight_decay=0.1),
    "decays": dict(weight_decay=[0.0, 0.1, 1.0]),
    "plateau": dict(schedule=plateau(0.5, patience=2), lr=[0.01, 0.02, 0.03], epochs=25),
    "one cycle, ragged": dict(schedule=one_cycle(), lr=0.01, subsets=RAGGED),
    "no validation": dict(valid=None), "last": dict(keep="last", lr=0.03),
    "weighted": dict(loss=weighted)}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def one_by_one(member, make=perceptron, loss=mean, valid=VALID, subsets=None, data=DATA, **how):
    "What the population promises to equal."
    own = data if subsets is None else tuple(x[subsets[member]] for x in data)
    how = {k: v[member] if isinstance(v, list) else v for k, v in how.items()}
    how["batch"] = how.get("batch", 64) or len(own[0])
    core.set_seed(3 + member)
    model, loss = make(), mean if loss is by_sample else loss
    return model, fit(model, loss, own, valid, seed=3 + member, **how)


@pytest.mark.parametrize("case", CASES)
def test_equals_fit(case, double):
    how = dict(epochs=12) | CASES[case]
    valid = how.get("valid", VALID)
    args = {k: v for k, v in how.items() if k not in ("make", "loss", "valid")}
    pop = fit_population(how.get("make", perceptron), how.get("loss", mean), DATA, valid,
                         seeds=[3, 4, 5], **args)
    if case == "patience":                                              # they stop at other times
        assert len(set(pop.history.groupby("member").size())) > 1
    for m in range(3):
        model, run = one_by_one(m, **how)
        mine = pop.history[pop.history.member == m]
        assert (run.best_epoch, run.stopped) == (pop.best_epoch[m], pop.stopped[m])
        for column in ("epoch", "train_loss", "valid_loss", "lr"):
            np.testing.assert_allclose(mine[column], run.history[column], rtol=1e-9)
        want = model.state_dict()
        for k, v in pop.model(m).state_dict().items():
            torch.testing.assert_close(v, want[k], rtol=1e-8, atol=1e-10)


def test_a_diverging_member_is_reported_and_the_others_go_on(double):
    with pytest.warns(UserWarning, match=r"1 of 3 members .* member 1: .* learning rate 1e\+200"):
        pop = fit_population(perceptron, mean, DATA, VALID, seeds=3, lr=[1e-3, 1e200, 1e-3],
                             epochs=6)
    assert pop.stopped == ["epochs", "diverged", "epochs"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calm = fit_population(perceptron, mean, DATA, VALID, seeds=3, epochs=6)
    for m in (0, 2): torch.testing.assert_close(pop.weights[m], calm.weights[m])
    with pytest.raises(TrainingError, match="member 1 has no weights"): pop.model(1)
    assert np.isnan(pop.best_loss[1]) and "diverged" in repr(pop)
    lost = pop.predict(VALID[0]).isnan().flatten(1)
    assert lost.all(1).tolist() == lost.any(1).tolist() == [False, True, False]
    with pytest.raises(TrainingError, match="member 0: training diverged in epoch"):
        fit_population(perceptron, mean, DATA, VALID, seeds=2, lr=1e200, epochs=6)
    x = DATA[0].clone()                                              # NaN in one member's data
    x[7] = float("nan")
    parts = [np.arange(100, 200), np.arange(0, 100), np.arange(50, 150)]
    with pytest.warns(UserWarning, match="1 of 3"):
        pop = fit_population(perceptron, mean, (x, DATA[1]), seeds=3, subsets=parts, epochs=2)
    assert pop.stopped == ["epochs", "diverged", "epochs"]


def test_masked_and_recurrent_layers_of_plain_operations(double):
    from neurocompanion.training.metrics import masked_mse

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.h, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x):                                            # b t n
            h, states = x.new_zeros(len(x), 6), []
            for now in self.x(x).unbind(1):
                h = torch.tanh(now + self.h(h))
                states.append(h)
            return self.out(torch.stack(states, 1))

    x = torch.randn(40, 9, 4, generator=draw, dtype=torch.float64)
    mask = torch.rand(40, 4, generator=draw) < 0.5
    loss = lambda model, x, y, m: masked_mse(model(x), y, m, weight=True)
    data = (x[:, :-1], x[:, 1:], mask)
    pop = fit_population(Loop, loss, data, data, seeds=2, epochs=4, batch=16)
    core.set_seed(1)
    alone = Loop()
    run = fit(alone, loss, data, data, seed=1, epochs=4, batch=16)
    assert pop.best_loss[1] == pytest.approx(run.best_loss, rel=1e-9)


class Tied(nn.Module):
    "Two layers share a weight, one parameter is frozen, one layer is used twice."
    def __init__(self):
        super().__init__()
        self.code, self.decode, self.twice = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.decode.weight = self.code.weight
        self.scale = nn.Parameter(torch.rand(6), requires_grad=False)

    def forward(self, x):
        return self.twice(self.twice(self.decode(self.code(x).tanh()))) * self.scale


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x): return self.scale * x


@pytest.mark.parametrize("make", [
    lambda: nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv1d(4, 3, 1)),
    lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Softsign()),
    lambda: nn.Sequential(nn.BatchNorm1d(3)),
    lambda: nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True), Tied, Scaled])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_layers_that_can_be_stacked(make, double):
    x = torch.randn(24, 3, 6, generator=draw, dtype=torch.float64)
    loss = lambda model, x, y: (model(x) - y).square().mean()
    pop = fit_population(make, loss, (x, x.flip(0)), seeds=2, epochs=2, batch=8)
    core.set_seed(1)
    alone = make()
    fit(alone, loss, (x, x.flip(0)), seed=1, epochs=2, batch=8)
    member = pop.model(1)
    for a, b in zip(alone.state_dict().values(), member.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(pop.predict(x)[1], alone(x))
    if make is Tied:
        assert member.decode.weight is member.code.weight and not member.scale.requires_grad


@pytest.mark.parametrize("case", ["patience", "batch norm, ragged", "plateau", "one cycle, ragged",
                                  "no validation", "last", "dropout", "diverging"])
def test_resumed_equals_uninterrupted(case, double, tmp_path):
    how = dict(epochs=12, seeds=[3, 4, 5]) | CASES.get(case, {})
    if case == "dropout": how["make"] = dropping
    if case == "diverging": how |= dict(lr=[1e-3, 1e200, 1e-3])
    make, loss, valid = (how.pop(*k) for k in (("make", perceptron), ("loss", mean),
                                               ("valid", VALID)))
    calls = []

    @functools.wraps(loss)
    def fragile(*batch):
        calls.append(1)
        if len(calls) == at: raise end
        return loss(*batch)

    train = lambda **more: fit_population(make, fragile, DATA, valid, **how, **more)
    at, pick = None, random.Random(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, n = train(), len(calls)
        for end in KeyboardInterrupt("enough"), ValueError("broken"), OSError("full"):
            calls, at = [], pick.randrange(2, n // 2)
            try: train(checkpoint=tmp_path / "run.pt", save_seconds=0)
            except type(end) as e:
                if isinstance(e, KeyboardInterrupt): assert len(e.population) == 3
        at = None
        resumed = train(checkpoint=tmp_path / "run.pt")
    assert torch.equal(whole.weights.nan_to_num(9.0), resumed.weights.nan_to_num(9.0))
    assert whole.history.equals(resumed.history) and whole.summary.equals(resumed.summary)
    for k, v in whole.buffers.items(): assert torch.equal(v, resumed.buffers[k])


def test_ctrl_c_ends_the_epoch_first(tmp_path):
    def press(model, x, y):
        if not torch.is_grad_enabled() and next(presses): signal.raise_signal(signal.SIGINT)
        return mean(model, x, y)
    presses, data = iter([False] * 3 + [True]), (DATA[0].float(), DATA[1])
    with pytest.raises(KeyboardInterrupt, match="after step 12; .*run.pt continues") as e:
        fit_population(perceptron, press, data, data, seeds=2, epochs=9,
                       checkpoint=tmp_path / "run.pt")
    assert e.value.population.stopped == ["interrupted"] * 2
    assert [len(m.history) for m in e.value.population.members] == [3, 3]


def test_predictions_tables_and_random_numbers_outside():
    data, threads = (DATA[0].float(), DATA[1]), torch.get_num_threads()
    torch.manual_seed(1), np.random.seed(1)
    want = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1), np.random.seed(1)
    pop = fit_population(perceptron, mean, data, data, seeds=[7, 1, 4], epochs=2)
    assert torch.equal(torch.rand(3), want[0]) and (np.random.rand(3) == want[1]).all()
    assert torch.get_num_threads() == threads
    assert pop.predict(data[0]).shape == (3, 200, 7) and len(pop) == 3
    assert list(pop.history) == ["member", "epoch", "train_loss", "valid_loss", "lr"]
    assert pop.history.shape == (6, 5)
    assert pop.summary.seed.tolist() == [7, 1, 4]
    pop = fit_population(dropping, mean, data, seeds=[5, 5], epochs=3)
    assert not torch.equal(pop.weights[0], pop.weights[1])           # dropout differs all the same


@pytest.mark.parametrize("change, says", [
    (dict(loss=lambda m, x, y: m(x)), r"expected a tensor of shape \(\) or \(2,\), found .*2, 7"),
    *[(dict(seeds=v), "seeds is out of range") for v in ([], 0, "3", 2.0, [1, -1])],
    *[({k: v}, f"{k} is out of range") for k, v in dict(epochs=0, batch=0, lr=-1,
                                                        weight_decay=-1).items()],
    (dict(optimiser="sgd"), "adamw or adam"),
    (dict(subsets=[[0, 1]]), "expected 2 index sets, found 1"),
    *[(dict(subsets=v), f"subsets of member {i} names no samples") for i, v in [
        (1, [[0, 1], []]), (1, [[0, 1], [0.5, 1.0]]), (0, [[True, False], [0]])]],
    (dict(data=(DATA[0].float(), DATA[1][:9])), "disagree on the number of samples"),
    (dict(make=nn.ReLU), "no parameters to train"),
    (dict(data=torch.utils.data.DataLoader([1, 2])), "data must be tensors: .* found DataLoader")])
def test_says_what_is_wrong(change, says):
    how = dict(make=perceptron, loss=mean, data=(DATA[0].float(), DATA[1]), seeds=2, epochs=1)
    how |= change
    with pytest.raises(ParameterError, match=says):
        fit_population(how.pop("make"), how.pop("loss"), how.pop("data"), **how)


def test_members_of_other_shapes_and_an_error_of_the_user_that_stays_what_it_is():
    data, widths = (DATA[0].float(), DATA[1]), iter([4, 5])
    with pytest.raises(ParameterError, match="member 1 has another shape than member 0"):
        fit_population(lambda: nn.Linear(30, next(widths)), mean, data, seeds=2, epochs=1)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        fit_population(lambda: nn.Linear(29, 7), mean, data, seeds=2, epochs=1)
