"""GlobalResponseNorm against the formula in torch: values, gradients, odd sizes, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn

torch = pytest.importorskip("torch")


def reference(x, scale, bias, eps):
    """The layer of facebookresearch/ConvNeXt-V2 (models/utils.py), in NHWC."""
    norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
    return scale * (x * (norm / (norm.mean(dim=-1, keepdim=True) + eps))) + bias + x


def both(x, dtype=jnp.float32, eps=1e-6):
    """Output and gradients by input, scale and bias: ours, and torch's in float64."""
    rng, channels = np.random.default_rng(1), x.shape[-1]
    layer = nn.GlobalResponseNorm(channels, eps=eps, dtype=dtype)
    values = {name: rng.standard_normal(channels).astype(np.float32) for name in ("scale", "bias")}
    for name, value in values.items():
        getattr(layer, name).set_value(jnp.asarray(value))
    weights = rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
    graphdef, state = nnx.split(layer)
    x, weights = jnp.asarray(x, dtype), jnp.asarray(weights, dtype)
    y, vjp = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
    grads, grad_x = vjp(weights)
    leaves = [
        torch.tensor(np.asarray(value, np.float64), requires_grad=True)
        for value in (x, values["scale"], values["bias"])
    ]
    ty = reference(*leaves, eps)
    ty.backward(torch.tensor(np.asarray(weights, np.float64)))
    ours = {"y": y, "x": grad_x, "scale": grads["scale"][...], "bias": grads["bias"][...]}
    grads = [leaf.grad.numpy() for leaf in leaves]
    return ours, dict(zip(ours, [ty.detach().numpy(), *grads], strict=True))


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 7, 5, 3), (3, 1, 9, 4), (1, 13, 3, 17)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_any_size_matches_torch(size, eps):
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    ours, theirs = both(x, eps=eps)
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape
        np.testing.assert_allclose(ours[name], expected, rtol=2e-5, atol=2e-5, err_msg=name)


def test_a_channel_of_zeros_has_the_gradient_of_torch():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    x[0, :, :, 2] = 0
    x[1] = 0
    ours, theirs = both(x)
    for name, expected in theirs.items():
        assert np.isfinite(ours[name]).all()
        np.testing.assert_allclose(ours[name], expected, rtol=2e-5, atol=2e-5, err_msg=name)


def test_bfloat16_is_rounded_once():
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 12)).astype(np.float32)
    ours, theirs = both(x, jnp.bfloat16)
    assert ours["y"].dtype == ours["x"].dtype == jnp.bfloat16
    for name in ("y", "x"):
        limit = 2**-8 * np.maximum(np.abs(theirs[name]), 0.01)
        assert (np.abs(np.asarray(ours[name], np.float64) - theirs[name]) <= limit).all(), name
    for name in ("scale", "bias"):
        assert ours[name].dtype == jnp.float32
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_starts_as_the_identity():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    np.testing.assert_array_equal(nn.GlobalResponseNorm(5)(x), x)
