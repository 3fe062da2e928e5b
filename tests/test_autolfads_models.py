"LFADS: agreement with reference values and plain loops, gradients, shapes, what is refused."
from pathlib import Path

import numpy as np
import pytest
import torch

from neurocompanion.autolfads import cells, models as M
from neurocompanion.core import ParameterError, RecordingError
from neurocompanion.fast import lfads

GOLDEN = Path(__file__).parent / "data" / "lfads_golden.npz"
SMALL = dict(ic_encoder=5, ic=4, generator=6, factors=3)
CONTROLLED = SMALL | dict(ci_encoder=4, controller=5, inputs=2)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["compiled", "pytorch"])
def loops(request, monkeypatch):
    "The compiled loops, where there is a compiler, and those in PyTorch."
    if request.param == "pytorch": monkeypatch.setattr(lfads, "compiled", lambda: None)


def counts(*shape, rate=0.7): return torch.poisson(torch.full(shape, rate))


# ---- reference values
def test_golden_outputs(loops):
    model, inputs, expected = M.load_reference(GOLDEN)
    assert not model.training
    with torch.no_grad(): out = model(*inputs)
    assert set(expected) == {"output_params", "factors", "ic_mean", "ic_std", "co_means", "co_stds",
                             "gen_states", "gen_init", "gen_inputs", "con_states"}
    for name, value in expected.items():
        assert out[name].shape == value.shape
        torch.testing.assert_close(getattr(out, name), value, atol=1e-5, rtol=0)
    with torch.no_grad(): named = model(x=inputs[0], external=inputs[1])
    assert torch.equal(named.rates, out.log_rates.exp())


def test_golden_coordinated_dropout(monkeypatch):
    z = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN).items()}
    drawn = z["cd_grad_mask"] == 0                           # the reference's draw instead of ours
    monkeypatch.setattr(M, "kept", lambda *a, **k: drawn)
    read, learn = M.coordinated(z["enc"], 0.3)
    torch.testing.assert_close(read, z["cd_input"], atol=1e-6, rtol=1e-5)
    assert torch.equal(learn, z["cd_grad_mask"])


# ---- files of other sizes, written by an independent, slow implementation
def sigmoid(x): return 1 / (1 + np.exp(-x))


def slow_gru(x, h, sd, name):
    w, u, b = (sd[f"{name}.cell.{k}"] if f"{name}.cell.{k}" in sd else sd[f"{name}.{k}"]
               for k in ("weight_ih", "weight_hh", "bias_ih"))
    k = h.shape[1]
    a = x @ w.T + b
    zr = sigmoid(a[:, :2 * k] + h @ u[:2 * k].T)
    z, r = zr[:, :k], zr[:, k:]
    n = np.tanh(a[:, 2 * k:] + (r * h) @ u[2 * k:].T)
    return np.clip(z * h + (1 - z) * n, -5, 5)


def slow_both(x, h0, sd, name):
    b, t, _ = x.shape
    forth, back, h = [None] * t, [None] * t, np.repeat(h0[0], b, 0)
    for i in range(t): h = forth[i] = slow_gru(x[:, i], h, sd, f"{name}.fwd_gru")
    h = np.repeat(h0[1], b, 0)
    for i in reversed(range(t)): h = back[i] = slow_gru(x[:, i], h, sd, f"{name}.bwd_gru")
    return np.stack(forth, 1), np.stack(back, 1)


def write_reference(path, *, n=4, read=3, t=6, t_read=5, e=0, controlled=True, params=1, b=2):
    "A file laid out as the golden one, of any sizes."
    rng = np.random.default_rng(0)
    draw = lambda *s: rng.standard_normal(s) * 0.5
    ic, ice, cie, c, u, g, f = 3, 4, 5, 6, 2 * controlled, 7, 2
    cell = "decoder.rnn.cell"
    sizes = {"encoder.ic_enc.fwd_gru.cell": (read, ice), "encoder.ic_enc.bwd_gru.cell": (read, ice),
             f"{cell}.gen_cell": (u + e, g)}
    sd = {"encoder.ic_enc_h0": draw(2, 1, ice), "encoder.ic_linear.weight": draw(2 * ic, 2 * ice),
          "encoder.ic_linear.bias": draw(2 * ic), "decoder.con_h0": draw(1, c),
          "decoder.ic_to_g0.weight": draw(g, ic), "decoder.ic_to_g0.bias": draw(g),
          f"{cell}.fac_linear.weight": draw(f, g), "readout.0.weight": draw(n * params, f),
          "readout.0.bias": draw(n * params), "ic_prior.mean": draw(ic),
          "ic_prior.logvar": draw(ic)}
    if controlled:
        sizes |= {f"encoder.ci_enc.{d}_gru.cell": (read, cie) for d in ("fwd", "bwd")}
        sizes[f"{cell}.con_cell"] = (2 * cie + f, c)
        sd |= {"encoder.ci_enc_h0": draw(2, 1, cie), f"{cell}.co_linear.weight": draw(2 * u, c),
               f"{cell}.co_linear.bias": draw(2 * u), "co_prior.logtaus": draw(u),
               "co_prior.lognvars": draw(u)}
    for name, (i, k) in sizes.items():
        sd |= {f"{name}.weight_ih": draw(3 * k, i), f"{name}.weight_hh": draw(3 * k, k),
               f"{name}.bias_ih": draw(3 * k), f"{name}.bias_hh": np.zeros(3 * k)}
    x, y, ext = rng.poisson(1, (b, t_read, read)), rng.poisson(1, (b, t, n)), draw(b, t, e)
    forth, back = slow_both(x, sd["encoder.ic_enc_h0"], sd, "encoder.ic_enc")
    last = np.concatenate([forth[:, -1], back[:, 0]], 1)
    moments = last @ sd["encoder.ic_linear.weight"].T + sd["encoder.ic_linear.bias"]
    out = {"ic_mean": moments[:, :ic], "ic_std": np.sqrt(np.exp(moments[:, ic:]) + 1e-4)}
    state = out["gen_init"] = (out["ic_mean"] @ sd["decoder.ic_to_g0.weight"].T
                               + sd["decoder.ic_to_g0.bias"])
    w = sd[f"{cell}.fac_linear.weight"]
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    if controlled:
        forth, back = slow_both(x, sd["encoder.ci_enc_h0"], sd, "encoder.ci_enc")
        ci = np.zeros((b, t, 2 * cie))
        ci[:, 1:t_read, :cie], ci[:, :t_read - 1, cie:] = forth[:, :-1], back[:, 1:]
    con, fac, rows = np.repeat(sd["decoder.con_h0"], b, 0), state @ w.T, []
    for i in range(t):
        mean = std = np.zeros((b, 0))
        if controlled:
            con = slow_gru(np.concatenate([ci[:, i], fac], 1), con, sd, f"{cell}.con_cell")
            m = con @ sd[f"{cell}.co_linear.weight"].T + sd[f"{cell}.co_linear.bias"]
            mean, std = m[:, :u], np.exp(m[:, u:] / 2)
        given = np.concatenate([mean, ext[:, i]], 1)
        state = slow_gru(given, state, sd, f"{cell}.gen_cell")
        fac = state @ w.T
        rows.append((mean, std, state, given, fac, con))
    names = ("co_means", "co_stds", "gen_states", "gen_inputs", "factors", "con_states")
    out |= {k: np.stack(v, 1) for k, v in zip(names, zip(*rows))}
    if not controlled: out["con_states"] = out["con_states"][..., :0]
    p = out["factors"] @ sd["readout.0.weight"].T + sd["readout.0.bias"]
    out["output_params"] = np.stack(np.split(p, params, -1), -1)
    arrays = {"enc": x, "y": y} | ({"ext": ext} if e else {})
    arrays |= {f"sd/{k}": v for k, v in sd.items()} | {f"out/{k}": v for k, v in out.items()}
    np.savez(path, **{k: v.astype("float32") for k, v in arrays.items()})
    return path


@pytest.mark.parametrize("controlled", [True, False])
@pytest.mark.parametrize("e", [0, 2])
@pytest.mark.parametrize("params", [1, 2])
@pytest.mark.parametrize("shape", [dict(), dict(n=3, t_read=6), dict(t=1, t_read=1, b=1)])
def test_files_of_other_sizes(tmp_path, controlled, e, params, shape):
    path = write_reference(tmp_path / "r.npz", e=e, controlled=controlled, params=params, **shape)
    model, inputs, expected = M.load_reference(path)
    assert len(inputs) == 1 + (e > 0)
    assert (model.head == "gaussian") == (params == 2)
    with torch.no_grad(): out = model(*inputs)
    for name, value in expected.items():
        torch.testing.assert_close(out[name], value, atol=1e-5, rtol=1e-5)


def rewrite(path, lose=(), rename=(), put=()):
    "The file without some arrays, with others renamed or put in."
    arrays = {dict(rename).get(k, k): v for k, v in np.load(path).items() if k not in lose}
    np.savez(path, **arrays | dict(put))
    return path


@pytest.mark.parametrize("controlled", [True, False])
def test_every_weight_is_needed_and_named(tmp_path, controlled):
    for name in np.load(GOLDEN):
        if name[:3] != "sd/" or name.endswith("bias_hh"): continue
        if not controlled and any(s in name for s in ("ci_", "con_", "co_")): continue
        for change, words in [(dict(lose=[name]), ["weights are missing", name, "r.npz"]),
                              (dict(rename={name: name + "_new"}), [name, name + "_new"])]:
            path = write_reference(tmp_path / "r.npz", controlled=controlled, e=2)
            with pytest.raises(RecordingError) as e: M.load_reference(rewrite(path, **change))
            for word in words: assert word in str(e.value)


def test_recurrent_biases_must_be_zero_and_may_be_left_out_as_inputs_of_no_width(tmp_path):
    names = [k for k in np.load(GOLDEN) if k.endswith("bias_hh")]
    assert len(names) == 6
    for name in names:
        path = write_reference(tmp_path / "r.npz")
        value = np.load(path)[name].copy()
        value[1] = 0.25
        with pytest.raises(RecordingError, match="is not zero.*found 0.25") as e:
            M.load_reference(rewrite(path, put={name: value}))
        assert name in str(e.value)
    for change in dict(lose=names), dict(put={"ext": np.zeros((2, 6, 0), "float32")}):
        path = rewrite(write_reference(tmp_path / "r.npz"), **change)
        model, inputs, expected = M.load_reference(path)
        assert len(inputs) == 1 and not model.external
        with torch.no_grad(): out = model(*inputs)
        torch.testing.assert_close(out.factors, expected["factors"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.rates, expected["output_params"][..., 0].exp(),
                                   atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change, words", [
    (dict(lose=["out/output_params"]), "no out/output_params"),
    (dict(put={"sd/readout.0.bias": np.zeros(3)}), "do not make a model.*readout.bias"),
    (dict(put={"sd/decoder.con_h0": np.zeros((1, 9))}), "do not make a model"),
    (dict(put={"sd/encoder.ic_enc_h0": np.zeros(())}), "do not make a model"),
    (dict(put={"sd/decoder.rnn.cell.fac_linear.bias": np.zeros(2)}), "does not have"),
    (dict(put={"ext": np.zeros((2, 6, 3))}), "external inputs of the wrong shape"),
    (dict(put={"enc": np.zeros((2, 5, 2))}), "data of the wrong shape")])
def test_files_that_are_refused(tmp_path, change, words):
    path = rewrite(write_reference(tmp_path / "r.npz", e=2), **change)
    with pytest.raises(RecordingError, match=f"r.npz.*{words}"): M.load_reference(path)


def test_files_that_cannot_be_read(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("no arrays")
    for name in ("one.npy", "text.npz", "nothing.npz"):
        with pytest.raises(RecordingError, match=name): M.load_reference(tmp_path / name)


# ---- fast loops against plain ones
def gradients(model, x, y, external=None, **kwargs):
    model.zero_grad()
    draw = torch.Generator().manual_seed(3)
    total, parts = M.loss(model, x, y, external, generator=draw, **kwargs)
    total.backward()
    return total.detach(), parts, {k: p.grad.clone() for k, p in model.named_parameters()
                                   if p.grad is not None}


@pytest.mark.parametrize("sizes", [SMALL, CONTROLLED])
@pytest.mark.parametrize("external", [0, 2])
@pytest.mark.parametrize("head", ["poisson", "gaussian"])
def test_training_step_equals_plain_loops(monkeypatch, sizes, external, head):
    model = M.LFADS(6, 9, encoded=4, read_steps=7, external=external, head=head, **sizes).double()
    x, y = counts(3, 7, 4).double(), counts(3, 9, 6).double()
    ext = torch.randn(3, 8, external).double() if external else None
    fast = gradients(model, x, y, ext, hyper=M.Hyper(kl_co=0.1, kl_ic=0.1))
    monkeypatch.setenv("NEUROCOMPANION_FAST", "no")
    plain = gradients(model, x, y, ext, hyper=M.Hyper(kl_co=0.1, kl_ic=0.1))
    assert fast[1].keys() == plain[1].keys() and fast[2].keys() == plain[2].keys()
    torch.testing.assert_close(fast[0], plain[0], rtol=1e-10, atol=0)
    for name, g in plain[2].items():
        eps = 1e-8 * (1 + g.norm().item())
        torch.testing.assert_close(fast[2][name], g, rtol=1e-7, atol=eps)


def test_training_step_in_single_precision(monkeypatch, loops):
    model = M.LFADS(20, 25, **CONTROLLED | dict(generator=40, ic_encoder=30))
    x = counts(16, 25, 20)
    fast = gradients(model, x, x)
    monkeypatch.setenv("NEUROCOMPANION_FAST", "no")
    plain = gradients(model, x, x)
    torch.testing.assert_close(fast[0], plain[0], rtol=1e-6, atol=0)
    for name, g in plain[2].items():
        torch.testing.assert_close(fast[2][name], g, rtol=1e-3, atol=2e-5 * g.norm().item())


def test_backward_twice(loops):
    x = torch.randn(3, 2, 2, requires_grad=True)
    total = cells.read(x, torch.zeros(2, 3), cells.GRU(2, 3).weights())[0].sum()
    first, = torch.autograd.grad(total, x, retain_graph=True)
    second, = torch.autograd.grad(total, x, retain_graph=True)
    assert torch.equal(first, second)
    total.backward()
    with pytest.raises(RuntimeError, match="second time"): total.backward()


def test_nothing_is_kept_without_gradients(monkeypatch):
    kept = []
    monkeypatch.setattr(lfads, "compiled", lambda: None)
    step = lfads._Cell.step
    monkeypatch.setattr(lfads._Cell, "step", lambda *a: kept.append(step(*a)) or kept[-1])
    model = M.LFADS(5, 6, **CONTROLLED)
    with torch.no_grad(): out = model(counts(2, 6, 5))
    assert out.log_rates.grad_fn is None and kept


# ---- the loss
def test_coordinated_dropout_learns_from_hidden_elements_only(monkeypatch):
    torch.manual_seed(1)
    model = M.LFADS(6, 8, encoded=4, read_steps=5, **SMALL)
    y, seen, mean_nll = counts(3, 8, 6), [], M._mean_nll
    monkeypatch.setattr(M, "_mean_nll", lambda *a: seen.append(a[2]) or mean_nll(*a))
    for train, rate in (True, 0.9), (False, 0.9), (True, 0.0):
        M.loss(model.train(train), y[:, :5, :4], y, hyper=M.Hyper(cd_rate=rate, dropout=0))
    learn, *others = seen                                               # t b n
    assert learn[5:].all() and learn[..., 4:].all() and others == [None, None]
    assert 0 < learn[:5, :, :4].mean() < 1


def test_seeds_and_hyperparameters_decide_and_threads_do_not():
    model, x = M.LFADS(5, 9, **CONTROLLED), counts(200, 9, 5)
    one, two, other = (gradients(model, x, x, hyper=M.Hyper(l2_gen=s)) for s in (0.1, 0.1, 10))
    assert one[0] == two[0] and set(one[1]) == {"nll", "kl_ic", "kl_co", "l2"}
    assert not any(v.requires_grad for v in one[1].values())
    assert (one[2]["generator.w_h"] != other[2]["generator.w_h"]).any()
    assert one[0] != M.loss(model, x, x, generator=torch.Generator().manual_seed(4),
                            hyper=M.Hyper(l2_gen=0.1))[0]
    torch.set_num_threads(2)
    two = gradients(model, x, x, hyper=M.Hyper(l2_gen=0.1))
    for name in ("ic_encoder.0.w_h", "controller.w_in", "generator.bias"):
        torch.testing.assert_close(one[2][name], two[2][name], rtol=1e-5, atol=1e-7)


def test_initial_weights_and_l2_of_scaled_networks_only():
    model = M.LFADS(60, 10, ci_encoder=80, controller=80, inputs=4)
    for cell, scales in [(model.ic_encoder[0], (160, 160)), (model.generator, (4, 100)),
                         (model.controller, (200, 80))]:
        for w, scale in zip((cell.w_in, cell.w_h), scales):
            assert abs(w.std().item() * scale**0.5 - 1) < 0.06
        k = cell.w_h.shape[1]
        assert (cell.bias[:2 * k] == 1).all() and (cell.bias[2 * k:] == 0).all()
    assert not model.readout.bias.any() and not model.ic_prior_logvar.requires_grad
    torch.testing.assert_close(M.l2(model, generator=2.0), model.generator.w_h.square().mean())
    assert M.l2(model) == 0 and M.l2(M.LFADS(5, 6, **SMALL), controller=1.0) == 0


# ---- averages
@pytest.mark.parametrize("head", ["poisson", "gaussian"])
def test_average_does_not_depend_on_batches(head):
    model = M.LFADS(5, 6, head=head, external=1, **CONTROLLED).train()
    x, ext = counts(7, 6, 5), torch.randn(7, 6, 1)
    one = M.average(model, x, ext, samples=5)
    assert model.training
    for batch in (1, 12, 35):
        for a, b in zip(one, M.average(model, x, ext, samples=5, batch=batch)):
            assert (a is None) == (b is None)
            if a is not None: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert (one.rates_sd > 0).all() and one.inputs.shape == (7, 6, 2)
    assert (one.noise_var is None) == (head == "poisson")
    assert (one.rates != M.average(model, x, ext, samples=5, seed=1).rates).any()


def test_average_of_many_samples_is_the_mean_of_single_passes():
    model = M.LFADS(5, 6, **CONTROLLED).eval()
    with torch.no_grad():                                    # narrow posteriors: tame moments
        model.ic_linear.bias[4:] -= 4
        model.co_linear.bias[2:] -= 4
    x = counts(2, 6, 5)
    many = M.average(model, x, samples=4000)
    with torch.no_grad():
        singles = torch.stack([model(x, sample=True).rates for _ in range(1500)])
    assert ((many.rates - singles.mean(0)).abs() < 5 * singles.std(0) / 1500**0.5 + 1e-4).all()
    torch.testing.assert_close(many.rates_sd, singles.std(0), rtol=0.15, atol=1e-3)


def test_nll_of_masks():
    model = M.LFADS(5, 6, **SMALL)
    x = counts(3, 6, 5)
    mask = torch.rand(3, 6, 5) < 0.5
    parts = [M.nll(model, x, x, mask=m, samples=3) for m in (mask, ~mask)]
    share = mask.float().mean().item()
    assert abs(share * parts[0] + (1 - share) * parts[1] - M.nll(model, x, x, samples=3)) < 1e-5
    assert M.nll(model, x, x, mask=torch.ones_like(x)) == M.nll(model, x, x)
    with pytest.raises(ParameterError, match="leaves no element"):
        M.nll(model, x, x, mask=torch.zeros(3, 6, 5, dtype=torch.bool))


# ---- use
@pytest.mark.parametrize("kind", ["float64", "float32", "int64", "uint16", "bool", ">f4"])
def test_arrays_are_taken_as_tensors_are(kind):
    model = M.LFADS(5, 6, encoded=4, read_steps=5, external=1, **SMALL).eval()
    y = counts(3, 6, 5).numpy().astype(kind)
    x, ext = y[:, :5, :4], np.random.default_rng(0).standard_normal((3, 6, 1))
    mask = np.random.default_rng(1).random((3, 6, 5)) < 0.5
    for a in (y, ext): a.flags.writeable = False
    of = lambda *a: [torch.tensor(np.array(v, "float32", order="C")) for v in a]
    with torch.no_grad():
        assert torch.equal(model(x, ext).log_rates, model(*of(x, ext)).log_rates)
        assert torch.equal(model(x[::-1], ext[::-1])[0], model(*of(x[::-1], ext[::-1]))[0])
    draw = lambda: torch.Generator().manual_seed(0)
    assert M.loss(model, x, y, ext, generator=draw())[0] == \
        M.loss(model, *of(x, y, ext), generator=draw())[0]
    assert torch.equal(M.average(model, x, ext).rates, M.average(model, *of(x, ext)).rates)
    found = [M.nll(model, x, y, ext, mask=m) for m in (
        mask, mask.astype(int), mask.astype(float), torch.from_numpy(mask), mask.tolist())]
    assert set(found) == {M.nll(model, *of(x, y, ext), mask=torch.from_numpy(mask))}
    assert torch.equal(M.element_nll(model(x, ext), y), M.element_nll(model(x, ext), *of(y)))


def test_parts_of_a_data_set_and_counts_of_any_type_can_be_read_and_evaluation_drops_nothing():
    from neurocompanion.autolfads.data import lorenz
    data = lorenz("simulated", conditions=3, repeats=5, units=6, steps=8)
    model, part = M.LFADS(**data.sizes, **SMALL), data.part("valid")
    assert M.average(model, part.x).rates.shape == part.y.shape
    assert M.nll(model.double(), part.x, part.y) > 0
    model, x = M.LFADS(5, 6, **CONTROLLED), counts(3, 6, 5)
    with torch.no_grad():
        assert torch.equal(model.eval()(x, dropout=0.5).factors, model(x).factors)
        torch.testing.assert_close(model(x.to(torch.uint8)).factors, model(x).factors)
        assert not torch.equal(model.train()(x, dropout=0.5).factors, model(x).factors)


def test_short_external_inputs_end_in_zeros_and_what_is_refused():
    for wrong, message in [
            (dict(neurons=0), "neurons is out"), (dict(steps=2.5), "steps is out of range"),
            (dict(read_steps=9), "more than it reconstr"), (dict(external=-1), "external is out"),
            (dict(inputs=2, ci_encoder=3), "controller is out of range")]:
        sizes = dict(neurons=5, steps=6) | wrong
        with pytest.raises(ParameterError, match=message): M.LFADS(**sizes)
    model = M.LFADS(5, 6, external=1, **SMALL).eval()
    x, ext = counts(3, 6, 5), torch.randn(3, 6, 1)
    ext[:, 4:] = 0
    with torch.no_grad(): assert torch.equal(model(x, ext).factors, model(x, ext[:, :4]).factors)
    model.train()
    for call, message in [
        (lambda: model(x[0], ext), "found \\(6, 5\\)"),
        (lambda: model(x, ext[:2]), "external inputs of the wrong shape"),
        (lambda: model(x[:0], ext[:0]), "no trials"),
        (lambda: M.loss(model, x, x[:, :5], ext), "data to reconstruct"),
        *[(lambda h=h: M.loss(model, x, x, ext, hyper=M.Hyper(**h)), f"{[*h][0]} is a share")
          for h in (dict(cd_rate=1.0), dict(dropout=-0.1))],
        (lambda: M.average(model, x, ext, samples=-1), "samples is out of range"),
        (lambda: M.sample_mask((2, 3), 1.5), "share of held-out"),
        (lambda: model([[1, 2], [3]], ext), "data are no array"),
        (lambda: model(x, 3.0), "external inputs of the wrong shape"),
    ]:
        with pytest.raises(ParameterError, match=message): call()
