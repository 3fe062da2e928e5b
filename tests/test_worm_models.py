"worm_scaling: the models' promises for many sizes, and that no half of a recording sees the other."
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings, strategies as st
from torch.func import functional_call, grad, stack_module_state, vmap

from neurocompanion.core import ParameterError, RecordingError
from neurocompanion.recordings.worm import simulate
from neurocompanion.recordings.standard import NEURONS, open_recording, save, traces
from neurocompanion.training.fit import fit
from neurocompanion.worm_scaling import data, models

KINDS = tuple(models.MODELS.values())                       # a new model is tested like the others
pytestmark = pytest.mark.usefixtures("one_thread")


def some(batch=3, time=12, labelled=50):
    "Activity, and a mask that is another one for every sample."
    mask = torch.zeros(batch, 302)
    for row in mask: row[torch.randperm(302)[:labelled]] = 1
    return torch.randn(batch, time, 302), mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [3, 7, 32])
@pytest.mark.parametrize("residual", [False, True])
def test_causal_masked_of_any_length_and_each_sample_on_its_own(kind, hidden, residual):
    x, mask = some()
    model = kind(hidden, residual=residual).eval()
    torch.nn.init.normal_(model.out.weight)
    y = model(x, mask)
    assert y.shape == x.shape
    torch.testing.assert_close(model(x[1:2], mask[1:2]), y[1:2], atol=1e-5, rtol=1e-4)
    for t in (1, 5, 11):
        later = x.clone()
        later[:, t:] = torch.randn_like(later[:, t:]) * 10
        assert torch.equal(model(later, mask)[:, :t], y[:, :t])
        assert not torch.equal(model(later, mask)[:, t:], y[:, t:])
    hidden_inputs = torch.where(mask[:, None] > 0, x, torch.nan)
    assert torch.equal(model(hidden_inputs, mask), y)
    for length in (1, 250): assert model(some(2, length)[0], mask[:2]).shape == (2, length, 302)


@pytest.mark.parametrize("kind", KINDS)
def test_causal_also_while_training(kind):
    "No gradient flows back from a prediction to later inputs, dropout or not."
    x, mask = some(64, 20)
    x.requires_grad_()
    model = kind(16).train()
    slope, = torch.autograd.grad(model(x, mask)[:, 7].square().sum(), x)
    assert slope[:, 8:].abs().max() == 0
    assert slope[:, 7].abs().max() > 0
    assert slope[mask[:, None].expand_as(slope) == 0].abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 4, 30])
@pytest.mark.parametrize("context", [None, 1, 6, 1000])
@pytest.mark.parametrize("forced", [0, 3, 9])
def test_generation_equals_a_forward_pass_for_every_step(kind, length, context, forced):
    x, mask = some(3, length)
    teacher, model = torch.randn(3, 9, 302), kind(8).eval()
    seen, expected = x, []
    for i in range(9):
        expected.append(model(seen[:, -(context or 10**6):], mask)[:, -1:])
        seen = torch.cat([seen, teacher[:, i:i + 1] if i < forced else expected[-1]], 1)
    model.train()
    found = models.generate(model, x, mask, 9, teacher=teacher[:, :forced] if forced else None,
                            context=context)
    torch.testing.assert_close(found, torch.cat(expected, 1), atol=1e-4, rtol=1e-3)
    assert model.training and not found.requires_grad
    with pytest.raises(ParameterError, match="302"): models.generate(model, x[:, :0], mask, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_can_be_learnt_by_heart(kind):
    x, mask = some(4, 11)
    model = kind(64, **({} if kind is models.LSTM else {"dropout": 0.0}))
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(150):
        loss, _ = models.next_step_loss(model, x, mask)
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    assert loss < 0.25


@pytest.mark.parametrize("kind", [models.Linear, models.Transformer])
def test_stacked_members_train_as_each_alone(kind):
    "`vmap` over weights; each member's gradient without dropout, and masks of its own with it."
    members, (x, mask) = [kind(16, dropout=0.0) for _ in range(3)], some(4, 9)
    stacked, _ = stack_module_state(members)

    def loss(weights):
        run = lambda x, mask: functional_call(members[0], weights, (x, mask))
        return models.next_step_loss(run, x, mask)[0]

    found = vmap(grad(loss))({k: v.detach() for k, v in stacked.items()})
    models.next_step_loss(members[2], x, mask)[0].backward()
    for name, w in members[2].named_parameters():
        torch.testing.assert_close(found[name][2], w.grad, atol=1e-6, rtol=1e-3)
    members[0] = kind(16, dropout=0.3)
    same = {k: v[:1].expand_as(v) for k, v in stacked.items()}
    losses = vmap(loss, randomness="different")(same)
    assert len(set(losses.tolist())) == 3


# --- data ---------------------------------------------------------------------------------------
def worm(rng, seconds, rate, jitter=0.0, pauses=(), neurons=4):
    time = np.cumsum(rng.uniform(1 - jitter, 1 + jitter, max(2, int(seconds * rate))) / rate)
    for at, wide in pauses: time = time[(time < at * seconds) | (time > at * seconds + wide)]
    x = rng.standard_normal((len(time), neurons)).cumsum(0) + 3
    return traces(x, NEURONS[:neurons], time, subject="w", source="made")


cases = settings(max_examples=40, suppress_health_check=list(HealthCheck))
hows = st.sampled_from([{}, {"tau": 2.5}, {"residual": "backward"}, {"residual": "central"},
                        {"alpha": 1.0, "residual": "backward", "tau": 1.0}])


@cases
@given(seed=st.integers(0, 10**6), seconds=st.floats(20, 90), rate=st.floats(0.8, 9),
       jitter=st.floats(0, 0.9), dt=st.floats(0.3, 4), how=hows,
       pauses=st.lists(st.tuples(st.floats(0, 0.9), st.floats(0.5, 9)), max_size=3))
def test_training_sees_no_value_of_the_second_half(seed, seconds, rate, jitter, dt, how, pauses):
    "Directly or through a statistic: whatever the second half holds, no training window moves."
    rng = np.random.default_rng(seed)
    raw = worm(rng, seconds, rate, jitter, pauses)
    time = raw.time.values - raw.time.values[0]
    step = np.floor(time / dt + 1e-9)
    first = step < (step[-1] + 1) // 2
    spoilt = raw.copy(deep=True)
    spoilt["trace"][~first] = rng.standard_normal(((~first).sum(), 4)) * 1e6
    a, b = (data.standardise(w, dt=dt, **how) for w in (raw, spoilt))
    half = a.attrs["half"]
    assert half == b.attrs["half"] == len(np.unique(step[first]))
    np.testing.assert_array_equal(a.trace[:half], b.trace[:half])
    try: made = [data.windows(w, "train", 5, 3) for w in (a, b)]
    except (ParameterError, RecordingError): return
    np.testing.assert_array_equal(made[0][0], made[1][0])
    lazy = [torch.cat([w for w, _ in data.Windows([w], "train", 5, 3)]) for w in (a, b)]
    assert torch.equal(*lazy)


@cases
@given(seed=st.integers(0, 10**6), steps=st.integers(12, 60), length=st.integers(1, 10),
       n=st.integers(1, 9), gaps=st.sets(st.integers(1, 58), max_size=6))
def test_no_window_reaches_across_a_gap_or_the_split(seed, steps, length, n, gaps):
    rng = np.random.default_rng(seed)
    time = np.array([t for t in range(steps) if t not in gaps], float)
    raw = traces(rng.standard_normal((len(time), 2)), NEURONS[:2], time, subject="w", source="made")
    ds = data.standardise(raw)
    for part in ("train", "valid"):
        try: first = data.window_starts(ds, part, n, length)
        except (ParameterError, RecordingError): continue
        t = ds.time.values
        assert len(first) == n
        assert (t[first + length] - t[first] == length).all()
        middle = (int(time[-1]) + 1) // 2
        if part == "train": assert (t[first + length] < middle).all()
        else: assert (t[first] >= middle).all()


@cases
@given(seed=st.integers(0, 10**6), tau=st.floats(0.1, 20), rate=st.integers(1, 10))
def test_a_time_constant_does_not_depend_on_the_frame_rate(seed, tau, rate):
    "Held between frames, a trace is smoothed alike at every rate."
    x = np.random.default_rng(seed).standard_normal(30)
    slow = data.smooth_in_time(x, np.arange(30.), tau)
    fast = data.smooth_in_time(np.repeat(x, rate)[rate - 1:],
                               np.arange(30 * rate - rate + 1) / rate, tau)
    np.testing.assert_allclose(fast[::rate], slow, atol=1e-9)


def test_uneven_frames_are_averaged_by_their_time_stamps_and_what_comes_can_be_saved(tmp_path):
    time = [0, 0.1, 0.9, 1.0, 2.5, 4.0, 4.2]
    raw = traces(np.arange(7.)[:, None], ["AVAL"], time, subject="w", source="made")
    ds = data.standardise(raw, alpha=1)
    assert ds.time.values.tolist() == [0, 1, 2, 4] and ds.attrs["half"] == 2
    mean, std = np.mean([0, 1, 2, 3]), np.std([0, 1, 2, 3])
    np.testing.assert_allclose(ds.trace[:, 0], (np.array([1, 3, 4, 5.5]) - mean) / std, rtol=1e-6)
    for how in ({}, {"tau": 3.0, "residual": "backward", "dt": 2.0}):
        ds = data.standardise(simulate.worms(1)[0], **how)
        save(ds, tmp_path / "worm.nc")
        again = open_recording(tmp_path / "worm.nc")
        xr.testing.assert_equal(ds, again.load())
        assert again.attrs["half"] == ds.attrs["half"]
        assert len(data.windows(again, "train", 3, 50)[0]) == 3


def test_a_run_on_windows_goes_on_where_it_was_interrupted(tmp_path):
    pool = [data.standardise(w) for w in simulate.worms(2, duration=240)]

    def train(checkpoint=None, stop=None):
        torch.manual_seed(1)
        model, seen = models.Linear(8), []

        def loss(model, w, m):
            seen.append(float(w.sum()))
            if stop and len(seen) > stop: raise KeyboardInterrupt
            return models.next_step_loss(model, w, m)

        lazy = data.Windows(pool, "train", 16, 40, batch=8, seed=3)
        try: fit(model, loss, lazy, epochs=3, checkpoint=checkpoint, save_seconds=0)
        except KeyboardInterrupt: pass
        return seen, model

    whole, model = train()
    before, _ = train(tmp_path / "c.pt", stop=6)
    after, resumed = train(tmp_path / "c.pt")
    assert len(whole) == 12 and whole[6:] == after[-6:] and len(after) <= 7
    for a, b in zip(model.parameters(), resumed.parameters()): assert torch.equal(a, b)


def test_draws_are_nested_and_repeatable():
    pool = ["a"] * 10 + ["b"] * 30 + ["c"] * 60
    for seed in range(5):
        draws = [data.mixed(pool, n, seed) for n in range(1, 101)]
        assert all(a == b[:-1] for a, b in zip(draws, draws[1:]))
        assert sorted(draws[-1]) == list(range(100)) and draws == [
            data.mixed(pool, n, seed) for n in range(1, 101)]
        b = data.of_source(pool, "b")
        own = [[b[i] for i in data.mixed(b, n, seed)] for n in range(1, 31)]
        assert all(a == b[:-1] for a, b in zip(own, own[1:]))
        assert sorted(own[-1]) == list(range(10, 40))
