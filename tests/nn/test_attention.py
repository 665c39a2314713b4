"""Attention and rotary embeddings against torch and timm: values, gradients, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import nn
from fcn_jax.pytorch import import_torchvision

torch = pytest.importorskip("torch")


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def sides(function, torch_function, inputs, dtype):
    """Output and gradients of a weighted sum: ours, and torch's in float64."""
    values = [jnp.asarray(x, dtype) for x in inputs]
    y, vjp = jax.vjp(function, *values)
    leaves = [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in values]
    ty = torch_function(*leaves)
    weights = jnp.asarray(np.cos(np.arange(y.size)).reshape(y.shape), dtype)
    ty.backward(torch.tensor(np.asarray(weights, np.float64)))
    grads = [leaf.grad.numpy() for leaf in leaves]
    return [y, *vjp(weights)], [ty.detach().numpy(), *grads]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 3, 7, 5), (1, 2, 13, 8)])
def test_attention_and_its_gradients_match_torch(shape, with_bias):
    batch, heads, tokens, channels = shape
    q, k, v, bias = drawn(
        shape, (batch, heads, 5, channels), (batch, heads, 5, 3), (1, heads, tokens, 5)
    )
    inputs = [q, k, v, bias] if with_bias else [q, k, v]
    scaled = torch.nn.functional.scaled_dot_product_attention
    ours, theirs = sides(nn.attention, scaled, inputs, jnp.float32)
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_bfloat16_differs_from_float64_by_a_few_roundings():
    inputs = drawn((2, 3, 9, 8), (2, 3, 9, 8), (2, 3, 9, 8))
    scaled = torch.nn.functional.scaled_dot_product_attention
    ours, theirs = sides(nn.attention, scaled, inputs, jnp.bfloat16)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(found, np.float64) - expected)
        assert error < 2**-7 * np.linalg.norm(expected)


def test_large_scores_stay_finite():
    q = jnp.full((1, 1, 2, 4), 1e4)
    assert jnp.isfinite(nn.attention(q, q, q)).all()


@pytest.fixture(scope="module")
def sincos():
    pytest.importorskip("timm.layers.pos_embed_sincos" if import_torchvision() else "timm")
    from timm.layers import pos_embed_sincos

    return pos_embed_sincos


@pytest.mark.parametrize(("size", "channels"), [((1, 1), 4), ((3, 5), 16), ((7, 2), 64)])
def test_rotation_and_its_gradient_match_timm(sincos, size, channels):
    rope = sincos.RotaryEmbeddingDinoV3(channels, feat_shape=list(size)).double()
    embedding = rope.get_embed(list(size))
    angles = nn.rotary_angles(size, channels)
    assert angles.shape == (size[0] * size[1], channels)
    np.testing.assert_allclose(np.sin(angles), embedding[:, :channels].numpy(), atol=2e-6)
    np.testing.assert_allclose(np.cos(angles), embedding[:, channels:].numpy(), atol=2e-6)
    ours, theirs = sides(
        lambda x: nn.rotate(x, angles),
        lambda x: sincos.apply_rot_embed_cat(x, embedding, half=True),
        drawn((2, 3, size[0] * size[1], channels)),
        jnp.float32,
    )
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    x, y = map(jnp.asarray, drawn((12, 8), (12, 8)))
    angles = nn.rotary_angles((3, 4), 8)
    np.testing.assert_allclose(
        jnp.linalg.norm(nn.rotate(x, angles), axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )
    x, y = jnp.broadcast_to(x[:1], x.shape), jnp.broadcast_to(y[:1], y.shape)
    scores = nn.rotate(x, angles) @ nn.rotate(y, angles).T
    # From patch (0, 0) to (1, 1), and from (1, 2) to (2, 3).
    np.testing.assert_allclose(scores[0, 5], scores[6, 11], rtol=1e-4, atol=1e-5)


def test_rejects_channels_that_are_not_a_multiple_of_4():
    with pytest.raises(ValueError, match="head_channels is 6; it must be a multiple of 4"):
        nn.rotary_angles((2, 2), 6)
