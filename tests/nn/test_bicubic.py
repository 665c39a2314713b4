"""resize_bicubic against torch: both kernels, odd sizes, gradients, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import nn

torch = pytest.importorskip("torch")

SIZES = [
    ((1, 1), (3, 2)),
    ((2, 3), (7, 5)),
    ((7, 5), (3, 4)),
    ((14, 14), (9, 23)),
    ((13, 4), (2, 11)),
    ((37, 37), (5, 36)),
]


def theirs(x, size, antialias):
    y = torch.nn.functional.interpolate(
        x.permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=antialias
    )
    return y.permute(0, 2, 3, 1)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_values_and_gradients_match_torch(old, new, antialias):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *old, 3)).astype(np.float32)
    weights = rng.standard_normal((2, *new, 3)).astype(np.float32)
    y, vjp = jax.vjp(lambda x: nn.resize_bicubic(x, new, antialias=antialias), jnp.asarray(x))
    tx = torch.tensor(x.astype(np.float64), requires_grad=True)
    ty = theirs(tx, new, antialias)
    ty.backward(torch.tensor(weights.astype(np.float64)))
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-5, atol=3e-6)
    np.testing.assert_allclose(vjp(weights)[0], tx.grad.numpy(), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("antialias", [False, True])
def test_bfloat16_is_rounded_once(antialias):
    x = np.random.default_rng(0).standard_normal((1, 9, 7, 2)).astype(np.float32)
    x = jnp.asarray(x, jnp.bfloat16)
    y = nn.resize_bicubic(x, (5, 11), antialias=antialias)
    assert y.dtype == jnp.bfloat16
    expected = theirs(torch.tensor(np.asarray(x, np.float64)), (5, 11), antialias).numpy()
    limit = 2**-8 * np.maximum(np.abs(expected), 0.01)
    assert (np.abs(np.asarray(y, np.float64) - expected) <= limit).all()


def test_the_same_size_returns_the_image():
    x = jnp.ones((1, 3, 4, 2))
    assert nn.resize_bicubic(x, (3, 4)) is x


@pytest.mark.parametrize(("old", "new"), [((0, 3), (2, 2)), ((3, 3), (0, 2))])
def test_rejects_empty_images(old, new):
    with pytest.raises(ValueError, match=r"cannot resize .* each side must be at least 1"):
        nn.resize_bicubic(jnp.zeros((1, *old, 2)), new)
