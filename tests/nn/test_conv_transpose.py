import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fcn_jax import nn

torch = pytest.importorskip("torch")
F = torch.nn.functional


@functools.cache
def ours(*settings):
    """`nn.conv_transpose` with its gradients, compiled once for each shape."""

    @jax.jit
    def run(x, weight, grad):
        y, vjp = jax.vjp(lambda x, k: nn.conv_transpose(x, k, *settings), x, weight)
        return (y, *vjp(grad))

    return run


def check(size, kernel, stride, padding, output_padding, channels, batch, depthwise, seed=0):
    """Compare output and gradients with PyTorch's in float64."""
    out = tuple(
        (n - 1) * stride - 2 * padding + k + output_padding
        for n, k in zip(size, kernel, strict=True)
    )
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, *size, channels[0]), np.float32)
    weight = rng.standard_normal(
        (*kernel, channels[0], 1 if depthwise else channels[1]), np.float32
    )
    grad = rng.standard_normal((batch, *out, channels[0] if depthwise else channels[1]), np.float32)
    groups = channels[0] if depthwise else 1

    tx = torch.tensor(x.transpose(0, 3, 1, 2).copy(), dtype=torch.float64, requires_grad=True)
    tk = torch.tensor(weight.transpose(2, 3, 0, 1).copy(), dtype=torch.float64, requires_grad=True)
    ty = F.conv_transpose2d(
        tx, tk, stride=stride, padding=padding, output_padding=output_padding, groups=groups
    )
    ty.backward(torch.tensor(grad.transpose(0, 3, 1, 2).copy(), dtype=torch.float64))
    theirs = (
        ty.detach().numpy().transpose(0, 2, 3, 1),
        tx.grad.numpy().transpose(0, 2, 3, 1),
        tk.grad.numpy().transpose(2, 3, 0, 1),
    )
    found = ours(stride, padding, output_padding, groups)(x, weight, grad)
    for name, a, b in zip(
        ("output", "input gradient", "kernel gradient"), found, theirs, strict=True
    ):
        assert a.shape == b.shape, name
        # Sums of at most a few hundred products of numbers of size 1, in float32.
        np.testing.assert_allclose(a, b, atol=2e-6 * max(np.abs(b).max(), 1), err_msg=name)


FORMS = {
    "the head's": ((2, 3), (8, 8), 4, 2, 0, (3, 3), 2, False),
    "the head's with a kernel for each class": ((2, 3), (8, 8), 4, 2, 0, (3, 3), 2, True),
    "the usual decoder's": ((3, 2), (3, 3), 2, 1, 1, (2, 1), 1, False),
    "pixels that nothing reaches": ((3, 3), (2, 1), 3, 0, 2, (1, 2), 1, False),
    "stride 1, an even and an odd side": ((4, 5), (2, 5), 1, 1, 0, (2, 3), 2, False),
    "more padding than the stride": ((5, 4), (9, 7), 2, 3, 0, (1, 2), 1, False),
    "an odd kernel for each channel": ((1, 4), (5, 3), 3, 1, 2, (3, 1), 2, True),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1))
def test_conv_transpose_and_its_gradients_match_torch(form, seed):
    check(*FORMS[form], seed)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    stride=st.integers(1, 5),
    padding=st.integers(0, 4),
    output_padding=st.integers(0, 4),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    batch=st.integers(1, 2),
    depthwise=st.booleans(),
)
def test_matches_torch_for_any_settings(
    size, kernel, stride, padding, output_padding, channels, batch, depthwise
):
    assume(output_padding < stride)
    assume(
        all(
            (n - 1) * stride - 2 * padding + k + output_padding > 0
            for n, k in zip(size, kernel, strict=True)
        )
    )
    check(size, kernel, stride, padding, output_padding, channels, batch, depthwise)


def test_rejects_output_padding_of_the_stride_or_more():
    with pytest.raises(ValueError, match=r"output_padding is 2.*stride, 2"):
        nn.conv_transpose(jnp.ones((1, 2, 2, 1)), jnp.ones((2, 2, 1, 1)), 2, 0, 2)


def test_rejects_an_empty_output_with_its_size():
    with pytest.raises(ValueError, match="2x3 pixels would be 0x2"):
        nn.conv_transpose(jnp.ones((1, 2, 3, 1)), jnp.ones((2, 2, 1, 1)), 2, 2)


def test_rejects_groups_other_than_1_and_the_channels():
    with pytest.raises(ValueError, match=r"groups is 2; it must be 1, or 4"):
        nn.conv_transpose(jnp.ones((1, 2, 2, 4)), jnp.ones((2, 2, 4, 1)), 2, groups=2)


def test_layer_matches_torch_and_keeps_float32_parameters_in_bfloat16():
    layer = nn.ConvTranspose(
        3, 2, 5, stride=2, padding=1, kernel_init=nn.torch_default(7), rngs=nnx.Rngs(0)
    )
    reference = torch.nn.ConvTranspose2d(3, 2, 5, stride=2, padding=1)
    reference.weight.data = torch.tensor(np.asarray(layer.kernel[...]).transpose(2, 3, 0, 1).copy())
    reference.bias.data = torch.tensor(np.asarray(layer.bias[...]))
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 3), np.float32)
    theirs = reference(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(layer(jnp.asarray(x)), theirs, atol=1e-6)

    half = nn.ConvTranspose(3, 2, 4, stride=2, padding=1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half(jnp.asarray(x)).dtype == jnp.bfloat16
    assert half.kernel[...].dtype == half.bias[...].dtype == jnp.float32


def test_bilinear_layer_enlarges_a_constant_image():
    layer = nn.ConvTranspose(2, 2, 4, stride=2, padding=1, use_bias=False, rngs=nnx.Rngs(0))
    y = np.asarray(layer(jnp.ones((1, 4, 4, 2))))
    assert y.shape == (1, 8, 8, 2)
    np.testing.assert_allclose(y[:, 1:-1, 1:-1], 1, rtol=1e-6)
    assert (y[:, 0] < 1).all(), "nothing lies past the border"
