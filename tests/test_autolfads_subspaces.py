"Soft-normalisation, by hand and of tensors."
import numpy as np
import torch

from neurocompanion.autolfads.subspaces import soft_normalise


def test_soft_normalisation_by_hand():
    x = np.array([[0.0, 10], [1, 20], [2, 30], [3, 40], [4, 50]])
    np.testing.assert_allclose(soft_normalise(x), (x - [2, 30]) / [3.61, 46.01])
    np.testing.assert_allclose(soft_normalise(x, quantile=0.5, offset=1), (x - [2, 30]) / [3, 31])


def test_tensors_that_carry_gradients():
    x = np.random.default_rng(0).standard_normal((6, 20, 4))
    u = torch.tensor(x, requires_grad=True)
    np.testing.assert_allclose(soft_normalise(u, like=u[:3]), soft_normalise(x, like=x[:3]))
