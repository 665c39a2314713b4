import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fcn_jax import nn

PIXELS_AT_A_TIME = importlib.import_module("fcn_jax.nn.conv")._PRODUCT_ROWS


def both(x, kernel, weights, stride, padding, dilation, groups, dtype=np.float32):
    """Output, input gradient and kernel gradient: of `nn.conv` in `dtype`, and of PyTorch in float64; both in our layout."""

    @jax.jit
    def ours(x, kernel, weights):
        y, vjp = jax.vjp(lambda x, k: nn.conv(x, k, stride, padding, dilation, groups), x, kernel)
        return (y, *vjp(weights))

    tx = torch.tensor(x.transpose(0, 3, 1, 2).copy(), dtype=torch.float64, requires_grad=True)
    tk = torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), dtype=torch.float64, requires_grad=True)
    ty = F.conv2d(tx, tk, stride=stride, padding=padding, dilation=dilation, groups=groups)
    ty.backward(torch.tensor(weights.transpose(0, 3, 1, 2).copy(), dtype=torch.float64))
    theirs = (
        ty.detach().numpy().transpose(0, 2, 3, 1),
        tx.grad.numpy().transpose(0, 2, 3, 1),
        tk.grad.numpy().transpose(2, 3, 1, 0),
    )
    return [np.asarray(a, np.float64) for a in ours(*(jnp.asarray(a, dtype) for a in (x, kernel, weights)))], theirs


def check(batch, size, channels, kernel_size, stride, padding, dilation, groups, dtype=np.float32, rtol=2e-6):
    rng = np.random.default_rng(0)
    out = tuple((n + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1 for n in size)
    arrays = (
        rng.standard_normal((batch, *size, channels[0])),
        rng.standard_normal((kernel_size, kernel_size, channels[0] // groups, channels[1])),
        rng.standard_normal((batch, *out, channels[1])),
    )
    # Both sides start from the same numbers, those that `dtype` can hold.
    arrays = [np.asarray(jnp.asarray(a, dtype), np.float64) for a in arrays]
    for name, ours, theirs in zip(
        ("output", "input gradient", "kernel gradient"), *both(*arrays, stride, padding, dilation, groups, dtype), strict=True
    ):
        assert ours.shape == theirs.shape, name
        # Relative to the largest value: sums of signed products cancel, so single elements have no relative accuracy.
        error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)
        assert error < rtol, f"{name}: {error:.2g}"


@example(size=(7, 9), kernel_size=7, stride=2, padding=3, dilation=1, groups=1, batch=2)  # the stem
@example(size=(8, 5), kernel_size=1, stride=2, padding=0, dilation=1, groups=1, batch=3)  # a shortcut: the last row is not seen
@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    kernel_size=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 1, 2]),
    batch=st.integers(1, 3),
)
def test_conv_and_its_gradients_equal_torch(size, kernel_size, stride, padding, dilation, groups, batch):
    assume(min(size) + 2 * padding >= dilation * (kernel_size - 1) + 1)
    check(batch, size, (2 * groups, 4), kernel_size, stride, padding, dilation, groups)


@pytest.mark.parametrize(
    ("batch", "size", "images_at_a_time"),
    [
        (6, (40, 33), 3),  # several images, and several groups of them
        (5, (40, 33), 1),  # 5 is prime and all five are too many
        (4, (8, 8), 4),  # all at once
        (2, (71, 67), 1),  # an image above the limit by itself
    ],
)
def test_kernel_gradient_is_the_same_for_any_grouping_of_the_batch(batch, size, images_at_a_time):
    fitting = [n for n in range(1, batch + 1) if batch % n == 0 and n * size[0] * size[1] <= PIXELS_AT_A_TIME]
    assert max(fitting, default=1) == images_at_a_time
    check(batch, size, (3, 5), 3, 1, 1, 1, 1, rtol=5e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_bfloat16_gives_bfloat16_and_is_as_near_as_it_can_be(groups):
    # Half a unit in the last place of bf16 is 2^-9 = 2e-3; the kernel gradient is summed in float32.
    check(2, (9, 8), (4, 6), 3, 2, 1, 1, groups, dtype=jnp.bfloat16, rtol=5e-3)
    x, kernel = jnp.ones((1, 5, 5, 4), jnp.bfloat16), jnp.ones((3, 3, 4 // groups, 4), jnp.bfloat16)
    y, vjp = jax.vjp(lambda x, k: nn.conv(x, k, 1, 1, 1, groups), x, kernel)
    assert {a.dtype for a in (y, *vjp(y))} == {jnp.dtype(jnp.bfloat16)}


def test_layer_equals_torch_and_keeps_float32_parameters_under_bfloat16():
    layer = nn.Conv(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, rngs=nnx.Rngs(0))
    reference = torch.nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)
    reference.weight.data = torch.tensor(np.asarray(layer.kernel[...]).transpose(3, 2, 0, 1).copy())
    reference.bias.data = torch.tensor(np.asarray(layer.bias[...]))
    x = np.random.default_rng(1).standard_normal((2, 9, 7, 4), np.float32)
    theirs = reference(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(layer(jnp.asarray(x)), theirs, atol=1e-6)

    half = nn.Conv(4, 6, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half(jnp.asarray(x)).dtype == jnp.bfloat16
    assert half.kernel[...].dtype == half.bias[...].dtype == jnp.float32


def test_layer_without_bias_has_none():
    layer = nn.Conv(1, 1, 1, use_bias=False, rngs=nnx.Rngs(0))
    assert layer.bias is None
    assert len(jax.tree.leaves(nnx.state(layer, nnx.Param))) == 1
