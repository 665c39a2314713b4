"""Winograd's form of a 3x3 convolution against PyTorch in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fcn_jax.nn import _winograd

torch = pytest.importorskip("torch")


conv3x3 = jax.jit(_winograd.conv3x3, static_argnums=(2, 3), static_argnames="transpose")
kernel_grad = jax.jit(_winograd.kernel_grad, static_argnums=(2, 3))


def both(size, padding, dilation, channels, seed=0):
    """Output and gradients by input and kernel: ours, torch's in float64, torch's errors."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, *size, channels[0])).astype(np.float32)
    kernel = rng.standard_normal((3, 3, *channels)).astype(np.float32)
    rows, cols = (side + 2 * padding - 2 * dilation for side in size)
    grad = rng.standard_normal((2, rows, cols, channels[1])).astype(np.float32)

    def by_torch(dtype):
        tx = torch.tensor(x.transpose(0, 3, 1, 2).copy(), dtype=dtype, requires_grad=True)
        tk = torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), dtype=dtype, requires_grad=True)
        ty = torch.nn.functional.conv2d(tx, tk, padding=padding, dilation=dilation)
        ty.backward(torch.tensor(grad.transpose(0, 3, 1, 2).copy(), dtype=dtype))
        nhwc = [t.detach().double().numpy().transpose(0, 2, 3, 1) for t in (ty, tx.grad)]
        return [*nhwc, tk.grad.double().numpy().transpose(2, 3, 1, 0)]

    ours = [conv3x3(x, kernel, padding, dilation), None, kernel_grad(x, grad, padding, dilation)]
    if padding <= 2 * dilation:
        ours[1] = conv3x3(grad, kernel, 2 * dilation - padding, dilation, transpose=True)
    return ours, by_torch(torch.float64), by_torch(torch.float32)


def check(size, padding, dilation, channels, seed=0):
    ours, truth, _ = both(size, padding, dilation, channels, seed)
    for found, wanted in zip(ours, truth, strict=True):
        if found is not None:
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))


# Size, padding, dilation, channels: tiles that the image fills and not, more border than the taps
# reach, none.
FORMS = [
    ((12, 8), 1, 1, (3, 5)),
    ((13, 7), 2, 2, (2, 3)),
    ((9, 11), 0, 1, (4, 1)),
    ((5, 6), 4, 3, (1, 2)),
    ((1, 3), 5, 4, (2, 2)),
]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1))
def test_conv3x3_and_its_gradients_match_torch(form, seed):
    check(*form, seed)


@pytest.mark.slow
@given(
    st.tuples(st.integers(1, 13), st.integers(1, 13)),
    st.integers(0, 5),
    st.integers(1, 4),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_conv3x3_and_its_gradients_match_torch_for_any_settings(size, padding, dilation, channels):
    assume(min(size) + 2 * padding >= 2 * dilation + 1)
    check(size, padding, dilation, channels)


def test_transforms_are_as_exact_as_the_sums_of_torch():
    ours, truth, theirs = both((14, 18), 1, 1, (128, 128))
    for found, wanted, other in zip(ours, truth, theirs, strict=True):
        assert np.linalg.norm(found - wanted) < 2 * np.linalg.norm(other - wanted)


def test_sums_a_kernel_gradient_in_float32():
    x, grad = (jnp.ones((1, 40, 40, 1), jnp.bfloat16) for _ in range(2))
    found = _winograd.kernel_grad(x, grad, 1, 1)
    assert found.dtype == jnp.float32
    assert found[1, 1, 0, 0] == 1600  # a bfloat16 sum would stall at 256
