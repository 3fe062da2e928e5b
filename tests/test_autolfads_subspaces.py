"Subspaces: axes, alignment and angles against known spaces."
import numpy as np
import pytest

from neurocompanion.autolfads import subspaces as S
from neurocompanion.autolfads.decoding import Decoder


def test_quiet_and_missing_points():
    "Soft-normalisation by hand; points that are not finite are left out of the axes."
    x = np.array([[0.0, 10], [1, 20], [2, 30], [3, 40], [4, 50]])
    np.testing.assert_allclose(S.soft_normalise(x), (x - [2, 30]) / [3.61, 46.01])
    np.testing.assert_allclose(S.soft_normalise(x, quantile=0.5, offset=1), (x - [2, 30]) / [3, 31])
    rng = np.random.default_rng(1)
    y = rng.standard_normal((50, 3)) * [3, 2, 1]
    holes = np.r_[y, [[np.nan, 0, 0], [0, np.inf, 0]]]
    np.testing.assert_allclose(S.principal_axes(holes, 2), S.principal_axes(y, 2))
    np.testing.assert_allclose(S.alignment_index(holes, holes, 2), 1)


def test_readout_leaves_out_directions_without_weight():
    w = np.outer([3.0, 0, 4], [1.0, 2])                                    # rank one
    axes = S.readout_axes(Decoder(w, np.zeros(2), 1.0, 0, np.zeros((1, 1))))
    assert axes.shape == (3, 1)
    np.testing.assert_allclose(abs(axes[:, 0]), [0.6, 0, 0.8], atol=1e-12)
    assert S.readout_axes(Decoder(0 * w, np.zeros(2), 1.0, 0, np.zeros((1, 1)))).shape == (3, 0)


def test_tensors_that_carry_gradients():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((6, 20, 4))
    u = torch.tensor(x, requires_grad=True)
    np.testing.assert_allclose(S.soft_normalise(u, like=u[:3]), S.soft_normalise(x, like=x[:3]))
    np.testing.assert_allclose(S.principal_axes(u, 2), S.principal_axes(x, 2))
    assert S.alignment_index(u, x, 2) == pytest.approx(1)
