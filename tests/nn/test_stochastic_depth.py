"""Stochastic depth: which images are left out, how often, and PyTorch's rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn


def test_whole_images_are_left_out_at_the_rate():
    layer = nn.StochasticDepth(0.3, rngs=nnx.Rngs(0))
    y = np.asarray(layer(jnp.ones((4000, 2, 1, 3))))
    per_image = y.reshape(len(y), -1)
    assert (per_image == per_image[:, :1]).all()
    dropped = per_image[:, 0] == 0
    assert dropped.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(per_image[~dropped], np.float32(1 / 0.7))


def test_calls_differ_and_seeds_repeat():
    x = jnp.ones((64, 1))
    layer, same = (nn.StochasticDepth(0.5, rngs=nnx.Rngs(7)) for _ in range(2))
    first = layer(x)
    np.testing.assert_array_equal(first, same(x))
    assert (first != layer(x)).any()


def test_eval_mode_and_rate_0_return_the_input():
    x = jnp.arange(6.0).reshape(2, 3)
    layer = nn.StochasticDepth(0.5, rngs=nnx.Rngs(0))
    layer.eval()
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(nn.StochasticDepth(0.0, rngs=nnx.Rngs(0))(x), x)


def test_gradient_flows_only_through_kept_images():
    layer = nn.StochasticDepth(0.5, rngs=nnx.Rngs(3))
    x = jnp.ones((32, 4))
    key = jax.random.key(1)
    y, vjp = jax.vjp(lambda x: layer(x, rngs=key), x)
    (grad,) = vjp(jnp.ones_like(y))
    np.testing.assert_array_equal(grad, y)
    assert {*np.unique(y)} == {0.0, 2.0}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_values_match_torchvision_bit_for_bit(dtype, monkeypatch):
    torch = pytest.importorskip("torch")
    from fcn_jax.pytorch.reference import import_torchvision

    x = np.random.default_rng(0).standard_normal((16, 5, 2)).astype(np.float32)
    kept = np.arange(16) % 3 > 0
    monkeypatch.setattr(jax.random, "bernoulli", lambda *_: jnp.asarray(kept[:, None, None]))
    mask = torch.tensor(kept[:, None, None])
    monkeypatch.setattr(torch.Tensor, "bernoulli_", lambda self, *_: self.copy_(mask))
    theirs = import_torchvision().ops.stochastic_depth(
        torch.tensor(x).to(getattr(torch, dtype)), 0.15, "row"
    )
    ours = nn.StochasticDepth(0.15, rngs=nnx.Rngs(0))(jnp.asarray(x, dtype))
    assert ours.dtype == dtype
    np.testing.assert_array_equal(np.asarray(ours, np.float32), theirs.float().numpy())
