"The training loop: known answers, equal weighting, exact resumption, plain errors."
import math, multiprocessing, os, pickle, random, signal, time

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from neurocompanion.core import ParameterError, TrainingError
from neurocompanion.training import fit as room
from neurocompanion.training.checkpoints import read_checkpoint
from neurocompanion.training.fit import State, evaluate, fit, settle
from neurocompanion.training.population import fit_population
from neurocompanion.training.schedules import cosine, make_optimiser, one_cycle, plateau

pytestmark = pytest.mark.usefixtures("one_thread")


def regression(n=100, inputs=5, outputs=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=draw)
    noise = 0.1 * torch.randn(n, outputs, generator=draw)
    return x, x @ torch.randn(inputs, outputs, generator=draw) + noise


def mse(model, x, y): return (model(x) - y).square().mean()


def masked(model, x, y, mask):
    n = mask.sum()
    return ((model(x) - y).square() * mask).sum() / n, n


def network(seed=0, dropout=0.2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Dropout(dropout),
                         nn.Linear(16, 3))


def weights(model): return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    a, b = (m if isinstance(m, dict) else m.state_dict() for m in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


TRAIN, VALID = regression(), regression(seed=1)


# ---- known answers
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_every_optimiser_equals_a_bare_loop(name):
    torch.manual_seed(0)
    ours, bare = nn.Linear(5, 3), nn.Linear(5, 3)
    bare.load_state_dict(ours.state_dict())
    fit(ours, mse, TRAIN, epochs=4, batch=32, lr=0.01, optimiser=name, shuffle=False)
    kind = dict(adamw=torch.optim.AdamW, adam=torch.optim.Adam, sgd=torch.optim.SGD)[name]
    optimiser = kind(bare.parameters(), lr=0.01)
    for _ in range(4):
        for i in range(0, 100, 32):
            optimiser.zero_grad()
            mse(bare, TRAIN[0][i:i + 32], TRAIN[1][i:i + 32]).backward()
            optimiser.step()
    for a, b in zip(ours.parameters(), bare.parameters()): assert torch.allclose(a, b, atol=1e-6)


def test_plateau_lowers_when_torch_does():
    losses = [5.0, 4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 2.99999]
    script = lambda model, *batch: torch.tensor(losses[model.epoch])

    def tell(state): state.model.epoch = state.epoch
    model = nn.Linear(5, 3)
    run = fit(model, mse, TRAIN, VALID, epochs=len(losses), batch=100, lr=1.0, optimiser="sgd",
              valid_loss=script, schedule=plateau(0.5, patience=2), on_epoch=tell, diverge=1e30)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    torchs, rates = ReduceLROnPlateau(optimiser, factor=0.5, patience=2), []
    for loss in losses:
        rates.append(optimiser.param_groups[0]["lr"])
        torchs.step(loss)
    assert run.history.lr.tolist() == rates
    assert len(set(rates)) > 2


def test_the_last_weights_the_training_loss_and_batches_of_an_iterable():
    last, alone = network(), network()
    run = fit(last, mse, TRAIN, VALID, epochs=30, lr=0.1, keep="last")
    fit(alone, mse, TRAIN, epochs=30, lr=0.1)
    assert run.best_epoch < 30 and same(last, alone)
    # the loss of training weighs entries equally, an iterable of batches is as good as tensors
    model = nn.Linear(5, 3)
    run = fit(model, mse, TRAIN, epochs=1, batch=7, lr=1e-30, optimiser="sgd")
    assert run.rows[0]["train_loss"] == pytest.approx(mse(model, *TRAIN).item(), rel=1e-6)
    assert run.steps == 15
    a, b = network(), network()
    fit(a, mse, [tuple(x[i:i + 40] for x in TRAIN) for i in range(0, 100, 40)], epochs=3)
    fit(b, mse, TRAIN, epochs=3, batch=40, shuffle=False)
    assert same(a, b)


# ---- what a run leaves behind
def test_history_hooks_and_measure():
    steps, epochs = [], []
    run = fit(network(), mse, TRAIN, VALID, epochs=3, batch=50, schedule="cosine",
              on_step=lambda s: steps.append((s.epoch, s.step, s.taken)),
              on_epoch=lambda s: epochs.append(s.epoch),
              measure=lambda s: {"norm": s.model[0].weight.norm(), "mode": s.model.training})
    assert list(run.history)[:5] == ["epoch", "step", "train_loss", "valid_loss", "lr"]
    assert run.history.step.tolist() == [2, 4, 6]
    assert steps == [(0, 0, 0), (0, 1, 1), (1, 2, 0), (1, 3, 1), (2, 4, 0), (2, 5, 1)]
    assert epochs == [0, 1, 2] and run.history["mode"].eq(0).all()
    rates = [cosine().keywords["shape"](s, 6, 0, 0) * 1e-3 for s in (1, 3, 5)]
    assert run.history.lr.tolist() == pytest.approx(rates)
    assert "stopped by epochs" in repr(run)


def test_the_seed_decides_and_the_surroundings_do_not_and_are_left_alone():
    def states(): return (torch.get_rng_state().tolist(), random.getstate(),
                          np.random.get_state()[1].tolist())
    a, b, c, before = network(), network(), network(), states()
    fit(a, mse, TRAIN, epochs=3, seed=5)
    assert states() == before
    torch.rand(7)
    random.random()
    fit(b, mse, TRAIN, epochs=3, seed=5)
    fit(c, mse, TRAIN, epochs=3, seed=6)
    assert same(a, b) and not same(a, c)


def test_frozen_parameters_parameter_groups_and_clipped_steps():
    model = network()
    model[0].requires_grad_(False)
    before = weights(model)
    groups = lambda ps: torch.optim.SGD([dict(params=[p for p in ps if p.ndim > 1], lr=0.1),
                                         dict(params=[p for p in ps if p.ndim == 1], lr=0.0)])
    fit(model, mse, TRAIN, epochs=2, optimiser=groups)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert torch.equal(model[4].bias, before["4.bias"])
    assert not torch.equal(model[4].weight, before["4.weight"])
    model = nn.Linear(5, 3)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    fit(model, mse, TRAIN, epochs=1, batch=100, clip=1e-3, lr=1.0, optimiser="sgd")
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_mixed_precision_reaches_the_loss_and_memory_is_kept_on_a_cpu(monkeypatch):
    seen = []

    def loss(model, x, y):
        seen.append(model(x).dtype)
        return mse(model, x, y)

    fit(nn.Linear(5, 3), loss, TRAIN, epochs=1, precision="auto")
    monkeypatch.setattr(room, "autocast", lambda *a: torch.autocast("cpu", torch.bfloat16))
    fit(nn.Linear(5, 3), loss, TRAIN, epochs=1)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    seen.clear()
    monkeypatch.setattr(room.core, "keep_memory", lambda: seen.append("kept"))
    fit(nn.Linear(5, 3), mse, TRAIN, epochs=1)
    fit_population(lambda: nn.Linear(5, 3), mse, TRAIN, seeds=2, epochs=1)
    assert seen == ["kept", "kept"]


@pytest.mark.gpu
def test_on_a_gpu():
    model = network(dropout=0).cuda()
    run = fit(model, mse, TRAIN, VALID, epochs=20, lr=0.01, precision="bf16")
    assert run.history.train_loss.iloc[-1] < run.history.train_loss.iloc[0]
    with pytest.raises(TrainingError, match=r"at step 7\b"):
        fit(network().cuda(), nan_at(6), TRAIN, epochs=20)


# ---- interrupted and resumed
def noisy(model, x, y):
    "A loss that draws from every generator there is."
    shake = np.random.rand() + random.random()
    return (model(x + 0.1 * torch.randn(x.shape)) - y).square().mean() * (1 + 0.1 * shake)


def break_off(at, how=KeyboardInterrupt):
    def hook(state):
        if state.step == at: raise how("broken off")
    return hook


@pytest.mark.parametrize("settings", [
    dict(epochs=9, schedule=one_cycle(0.15), clip=1.0),
    dict(epochs=9, schedule=plateau(0.5, patience=1), optimiser="adam", patience=4, lr=0.03),
    dict(epochs=9, optimiser=lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9), keep="last"),
    dict(epochs=9, schedule="cosine", lr=np.float64(0.01), patience=np.int64(8))],
    ids=["one_cycle", "plateau", "momentum", "numpy"])
def test_resumed_equals_uninterrupted(settings, tmp_path):
    settings = dict(settings, batch=16)
    whole = network()
    reference = fit(whole, noisy, TRAIN, VALID, **settings, on_step=break_off(-1))
    assert reference.steps == 7 * len(reference.rows)
    draw = random.Random(0)
    for trial in range(6):
        path, parts = tmp_path / f"{trial}.pt", network()
        for at in sorted(draw.sample(range(1, reference.steps), 3)):
            how = draw.choice([KeyboardInterrupt, ValueError])
            with pytest.raises(how):
                fit(parts, noisy, TRAIN, VALID, **settings, on_step=break_off(at, how),
                    checkpoint=path, save_seconds=draw.choice([0, 0.01]))
            if trial % 2: parts = network(seed=trial + 1)  # the checkpoint brings the weights
        run = fit(parts, noisy, TRAIN, VALID, **settings, on_step=break_off(-1), checkpoint=path)
        assert same(parts, whole)
        assert np.array_equal(run.history, reference.history, equal_nan=True)
        assert (run.best_epoch, run.stopped) == (reference.best_epoch, reference.stopped)


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "own generator"])
def test_a_loader_is_resumed_in_the_middle(own, tmp_path):
    def loader():
        data = torch.utils.data.TensorDataset(*TRAIN)
        generator = torch.Generator().manual_seed(3) if own else None
        return torch.utils.data.DataLoader(data, 16, shuffle=True, generator=generator)
    whole, parts = network(), network()
    fit(whole, noisy, loader(), epochs=4, on_step=break_off(-1))
    for at in 3, 10, 19:
        with pytest.raises(KeyboardInterrupt):
            fit(parts, noisy, loader(), epochs=4, on_step=break_off(at), save_seconds=0,
                checkpoint=tmp_path / "run.pt")
        parts = network()
    fit(parts, noisy, loader(), epochs=4, on_step=break_off(-1), checkpoint=tmp_path / "run.pt")
    assert same(parts, whole)


def test_ctrl_c_finishes_the_step_and_keeps_the_best_and_a_second_does_not_wait(tmp_path):
    path, model, seen = tmp_path / "run.pt", network(), {}

    def press(state):
        if state.step == 20: signal.raise_signal(signal.SIGINT)
        if state.taken == 0: seen[state.epoch] = weights(state.model)

    with pytest.raises(KeyboardInterrupt, match="after step 21"):
        fit(model, mse, TRAIN, VALID, epochs=9, batch=16, on_step=press, checkpoint=path)
    [parts] = read_checkpoint(path)["members"]
    assert parts["step"] == 21
    assert same(model, seen[parts["best_epoch"]]) and not model.training
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def impatient(model, x, y):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        fit(network(), impatient, TRAIN, epochs=1, checkpoint=tmp_path / "second.pt")
    assert read_checkpoint(tmp_path / "second.pt")["members"][0]["step"] == 0


def child(path, out):
    "A run in a process of its own, slow enough to be killed in the middle."
    model = network()
    run = fit(model, noisy, TRAIN, VALID, epochs=60, batch=16, schedule="one_cycle",
              on_step=lambda state: time.sleep(0.001), checkpoint=path, save_seconds=0.0)
    torch.save({"weights": model.state_dict(), "rows": run.rows}, out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments(tmp_path):
    draw, results, fork = random.Random(), [], multiprocessing.get_context("fork")
    for name, kills in (("whole", 0), ("parts", 5)):
        path, out = tmp_path / f"{name}.pt", tmp_path / f"{name}.out"
        for kill in [True] * kills + [False]:
            process = fork.Process(target=child, args=(path, out))
            process.start()
            process.join(draw.uniform(0.02, 0.4) if kill else 60)
            if kill: process.kill()
            process.join(60)
            assert process.exitcode in ((-signal.SIGKILL, 0) if kill else (0,))
        results.append(torch.load(out, weights_only=True))
    assert same(results[0]["weights"], results[1]["weights"])
    assert results[0]["rows"] == results[1]["rows"]


def test_an_ended_run_is_not_run_again_but_can_be_extended(tmp_path):
    path, long, twice = tmp_path / "run.pt", network(), network()
    reference = fit(long, mse, TRAIN, VALID, epochs=8)
    short = fit(twice, mse, TRAIN, VALID, epochs=5, checkpoint=path)
    stamp = path.stat().st_mtime_ns
    again = fit(network(3), mse, TRAIN, VALID, epochs=5, checkpoint=path)
    assert again.rows == short.rows and path.stat().st_mtime_ns == stamp
    assert fit(twice, mse, TRAIN, VALID, epochs=8, checkpoint=path).rows == reference.rows
    assert same(twice, long)
    with pytest.raises(TrainingError, match="past the end: expected at most 5 epochs, found 8"):
        fit(twice, mse, TRAIN, VALID, epochs=5, checkpoint=path)
    assert len(fit(network(), mse, TRAIN, VALID, epochs=5, checkpoint=path, resume=False).rows) == 5


@pytest.mark.parametrize("change, says", [
    (dict(batch=7), "expected batch = 7, found batch = 64"),
    (dict(schedule=cosine(0.2)), r"schedule = scaled\(shape=cosine, warmup=0.2"),
    (dict(loss=noisy), "expected loss = noisy, found loss = mse"),
    (dict(model=nn.Linear(5, 3)), "model weight"),
    (dict(model=network().insert(1, nn.Tanh())), "expected model = Sequential"),
    (dict(train=regression(seed=9)), r"train\[0\] = \(100, 5\) float32 .*, train\[1\]"),
    (dict(valid=None), r"valid\[0\] = None")])
def test_another_configuration_is_refused(change, says, tmp_path):
    given = dict(model=network(), loss=mse, train=TRAIN, valid=VALID, epochs=2,
                 checkpoint=tmp_path / "run.pt")
    fit(**given)
    with pytest.raises(TrainingError, match=f"run.pt: this checkpoint belongs.*{says}"):
        fit(**given | change)


class Evil:
    def __reduce__(self): return os.system, ("touch evil",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("spoil", ["cut", "noise", "empty", "pickle", "other"])
def test_a_damaged_checkpoint_is_refused(spoil, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.pt"
    fit(network(), mse, TRAIN, epochs=1, checkpoint=path)
    if spoil == "other": torch.save([1, 2], path)
    else:
        path.write_bytes({"cut": path.read_bytes()[:-500], "noise": os.urandom(999), "empty": b"",
                          "pickle": pickle.dumps(Evil())}[spoil])
    with pytest.raises(TrainingError, match="run.pt: this is no readable checkpoint"):
        fit(network(), mse, TRAIN, epochs=1, checkpoint=path)
    assert not (tmp_path / "evil").exists()
    with pytest.raises(FileNotFoundError): read_checkpoint(tmp_path / "none.pt")  # no damaged one


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    fit(network(), mse, TRAIN, epochs=2, checkpoint=path)
    before = path.read_bytes()

    def full(parts, f):
        f.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        fit(network(), mse, TRAIN, epochs=4, checkpoint=path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# ---- runs that go wrong
def nan_at(step):
    calls = iter(range(10**6))

    def loss(model, x, y): return mse(model, x, y) * (math.nan if next(calls) == step else 1)
    return loss


def root(model, x, y): return (model(x) * 0).abs().sqrt().mean()  # 0, with gradient NaN


class Liar(list):
    def __len__(self): return 3


@pytest.mark.parametrize("how, says", [
    (dict(loss=nan_at(10), epochs=9, batch=20, lr=0.005),
     "epoch 3 at step 11: .* loss nan, gradient norm nan at learning rate 0.005"),
    (dict(loss=root, batch=100, epochs=1), "weights are not finite after step 1"),
    (dict(loss=root, clip=1.0), "epoch 1 at step 1:.*gradient norm nan"),
    (dict(valid=(VALID[0] * math.nan, VALID[1])), "diverged in epoch 1: .* found nan after step 2"),
    (dict(train=Liar([TRAIN, TRAIN])), "changed length in epoch 1: expected 3 steps, found 2")])
def test_what_goes_wrong_is_told_with_its_place(how, says):
    with pytest.raises(TrainingError, match=says):
        fit(**dict(model=network(), loss=mse, train=TRAIN, epochs=2) | how)


def test_divergence_is_caught_while_finite_and_the_best_weights_stay():
    model = nn.Linear(5, 3)
    with pytest.raises(TrainingError, match="training diverged") as e:
        fit(model, mse, TRAIN, VALID, epochs=99, lr=3.0, optimiser="sgd")
    assert all(p.isfinite().all() for p in model.parameters()) and "nan" not in e.value.found
    # losses that are fetched late still name their step
    state = State(model := nn.Linear(5, 3), optimiser=make_optimiser(model.parameters()))
    state.pending = [(s, 0.1, torch.tensor(math.nan if s == 17 else 1.0), 5, 0.0)
                     for s in range(1, 33)]
    with pytest.raises(TrainingError, match=r"at step 17\b"): settle(state)


def test_nothing_labelled():
    mask = torch.ones(100, 3, dtype=torch.bool)
    mask[:50] = False
    for m, batch in (mask, 50), (mask & False, 100):
        with pytest.raises(TrainingError, match="Nothing in this batch is labelled"):
            fit(network(), masked, (*TRAIN, m), epochs=1, batch=batch, shuffle=False)
    model = network()
    assert evaluate(model, masked, (*TRAIN, mask), batch=50) == pytest.approx(
        evaluate(model, mse, tuple(x[50:] for x in TRAIN)))
    with pytest.raises(TrainingError, match="nothing to score"):
        evaluate(model, masked, (*TRAIN, mask & False))


@pytest.mark.parametrize("change, says", [
    *[({k: v}, f"{k} is out of range") for k, v in [
        ("epochs", 2.5), ("batch", 0), ("lr", -1), ("lr", math.inf), ("patience", 0),
        ("diverge", 0), ("save_seconds", -1), ("seed", 0.5), ("weight_decay", -1)]],
    (dict(epochs=0), "epochs is out of range: expected a whole number, at least 1, found 0"),
    (dict(lr="1e-3"), "lr is out of range: expected a number above 0, or None, found '1e-3'"),
    (dict(keep="first"), "keep is out of range: expected best or last"),
    (dict(precision="half"), "there is no such precision"),
    (dict(schedule=lambda o, n: None), "schedule is not a scheduler"),
    (dict(checkpoint="."), "checkpoint is out of range: expected a file"),
    (dict(train=(TRAIN[0], TRAIN[1][:9])), "tensors of train disagree.*found 100 and 9"),
    (dict(train=()), "train is no data set"), (dict(train=[]), "found list of length 0"),
    (dict(valid=(TRAIN[0][:0], TRAIN[1][:0])), "tensors of valid disagree"),
    (dict(loss=lambda m, x, y: 0.5), "expected a tensor without axes, found float"),
    (dict(loss=lambda m, x, y: (mse(m, x, y), 1, 2)), "must be one number: .* found tuple"),
    (dict(model=nn.ReLU()), "no parameters to train: .* Score it as it is")])
def test_what_cannot_be_is_refused(change, says):
    with pytest.raises(ParameterError, match=says):
        fit(**dict(model=network(), loss=mse, train=TRAIN, epochs=2) | change)
