"""TensorFlow's "SAME" padding: its rule, and convolutions with it, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax import nn

torch = pytest.importorskip("torch")
F = torch.nn.functional


@given(st.integers(1, 100), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_same_padding_is_the_least_that_gives_every_stride_an_output(size, taps, stride, dilation):
    before, after = nn.same_padding(size, taps, stride, dilation)
    reach = dilation * (taps - 1) + 1
    outputs = (size + before + after - reach) // stride + 1
    assert outputs == -(-size // stride)
    assert 0 <= after - before <= 1
    if after:  # one zero less is too few
        assert (size + before + after - 1 - reach) // stride + 1 < outputs


@pytest.mark.parametrize(
    ("size", "taps", "stride", "dilation", "expected"),
    [
        (224, 3, 2, 1, (0, 1)),
        (225, 3, 2, 1, (1, 1)),
        (112, 5, 2, 1, (1, 2)),
        (113, 5, 2, 1, (2, 2)),
        (14, 3, 1, 2, (2, 2)),
        (8, 2, 1, 1, (0, 1)),
        (8, 1, 2, 1, (0, 0)),
        (1, 3, 2, 1, (1, 1)),
    ],
)
def test_same_padding_of_known_sizes(size, taps, stride, dilation, expected):
    assert nn.same_padding(size, taps, stride, dilation) == expected


def padded(x, taps, stride, dilation):
    """timm's `pad_same`, in its own words."""
    edges = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        edges += [total // 2, total - total // 2]
    return F.pad(x, edges)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("size", "taps", "stride", "dilation"),
    [((6, 8), 3, 2, 1), ((7, 6), 5, 2, 1), ((5, 5), 3, 1, 2), ((7, 8), 2, 3, 1)],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_convolution_and_gradients_match_torch(size, taps, stride, dilation, groups, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *size, 4)), dtype)
    kernel = jnp.asarray(rng.standard_normal((taps, taps, 4 // groups, 4)), dtype)

    @jax.jit
    def run(x, kernel):
        convolve = functools.partial(
            nn.conv, stride=stride, padding="same", dilation=dilation, groups=groups
        )
        y, vjp = jax.vjp(convolve, x, kernel)
        return (y, *vjp(jnp.cos(y)))

    tx, tk = (
        torch.tensor(np.asarray(a, np.float64).transpose(axes)).requires_grad_()
        for a, axes in ((x, (0, 3, 1, 2)), (kernel, (3, 2, 0, 1)))
    )
    ty = F.conv2d(padded(tx, taps, stride, dilation), tk, None, stride, 0, dilation, groups)
    ours = run(x, kernel)
    # The cotangent from our own output, so that only the backward pass is compared.
    cotangent = np.cos(np.asarray(ours[0], np.float64)).transpose(0, 3, 1, 2)
    ty.backward(torch.tensor(cotangent))
    theirs = (ty, tx.grad), (0, 2, 3, 1)
    for found, wanted, axes in (
        (ours[0], ty, theirs[1]),
        (ours[1], tx.grad, theirs[1]),
        (ours[2], tk.grad, (2, 3, 1, 0)),
    ):
        wanted = wanted.detach().numpy().transpose(axes)
        assert found.shape == wanted.shape
        error = np.abs(np.asarray(found, np.float64) - wanted).max() / np.abs(wanted).max()
        assert error < {"float32": 1e-6, "bfloat16": 1e-2}[dtype]


def test_odd_kernels_with_stride_1_are_padded_as_by_numbers():
    x = jax.ShapeDtypeStruct((1, 6, 7, 3), np.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 4), np.float32)
    programs = [
        str(jax.make_jaxpr(functools.partial(nn.conv, padding=p, dilation=2))(x, kernel))
        for p in ("same", 2)
    ]
    assert programs[0] == programs[1]


def test_layers_take_same_padding():
    layer = nn.ConvNormAct(3, 4, 3, stride=2, padding="same", rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 8, 3)), np.float32)
    shifted = layer.conv(x)
    by_hand = nn.conv(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), layer.conv.kernel[...], 2)
    np.testing.assert_allclose(shifted, by_hand, rtol=1e-5, atol=1e-6)
    assert layer(x).shape == (2, 3, 4, 4)
