"Trace models: shapes, what each of them can hear, and a batch that can be learned."
import pytest
import torch

from neurocompanion.zebrafish import traces as Z

pytestmark = pytest.mark.usefixtures("one_thread")
C, H, N, K = 6, 9, 5, 3
MODELS = {
    "last": lambda: Z.Last(H), "mean": lambda: Z.Mean(H), "linear": lambda: Z.LinearTraces(C, H),
    "timemix": lambda: Z.TimeMix(C, H), "tsmixer": lambda: Z.TSMixer(N, C, H, hidden=16),
    "timemix_norm": lambda: Z.TimeMix(C, H, normalise=True),
    "tsmixer_norm": lambda: Z.TSMixer(N, C, H, hidden=16, normalise=True),
    "tide": lambda: Z.TiDE(C, H, covariates=K, static=torch.randn(N, 4), hidden=16),
    "tide_alone": lambda: Z.TiDE(C, H, covariates=0, hidden=16)}


def batch(samples=4): return (torch.randn(samples, C, N), torch.randn(samples, C, K),
                              torch.randn(samples, H, K))


@pytest.mark.parametrize("name", MODELS)
def test_samples_are_apart_and_only_the_mixer_hears_other_cells(name):
    model, (x, past, future) = MODELS[name]().eval(), batch()
    y = model(x, past, future)
    assert y.shape == (4, H, N)
    one = model(x[:1], past[:1], future[:1])
    torch.testing.assert_close(y[:1], one, atol=1e-5, rtol=1e-5)
    moved = x.clone()
    moved[..., 0] += torch.randn(4, C)
    changed = (model(moved, past, future) - y).abs().amax((0, 1)) > 1e-6
    assert changed[0]
    assert changed[1:].any() == name.startswith("tsmixer")


@pytest.mark.parametrize("name", [m for m in MODELS if m not in ("last", "mean")])
def test_a_batch_can_be_learned(name):
    torch.manual_seed(1)
    model, (x, past, future), y = MODELS[name](), batch(1), torch.randn(1, H, N) / 10
    if name == "linear": y = torch.linspace(0, 1, H)[None, :, None] * x[:, :1]
    optimiser, losses = torch.optim.Adam(model.parameters(), 2e-2), []
    for _ in range(400):
        loss = (model(x, past, future) - y).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.2 * losses[0]
