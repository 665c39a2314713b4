import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fcn_jax
from fcn_jax import nn
from fcn_jax.nn._depthwise_conv_transpose import grads_by_rows, spread, whole_grads
from fcn_jax.train.losses import cross_entropy


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-7)])
def test_gradients_by_rows_match_those_of_whole_images(dtype, tolerance):
    keys = jax.random.split(jax.random.key(0), 4)
    pixels = tuple(jax.random.normal(key, (2, 3, 5, 7), dtype) for key in keys[:2])
    kernels = jax.random.normal(keys[2], (2, 4, 4, 7))
    grad = jax.random.normal(keys[3], (2, 3, 4, 5, 4, 7), dtype)
    (*by_rows, of_kernels), (*whole, expected) = (
        jax.tree.leaves(jax.jit(f)(pixels, kernels, grad)) for f in (grads_by_rows, whole_grads)
    )
    for a, b in zip(by_rows, whole, strict=True):
        assert a.dtype == b.dtype == dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())
    np.testing.assert_allclose(of_kernels, expected, atol=1e-6 * np.abs(expected).max())


def test_does_not_round_the_kernel_gradient_to_bfloat16():
    keys = jax.random.split(jax.random.key(0), 3)
    pixels = (jax.random.normal(keys[0], (1, 3, 5, 7), "bfloat16"),)
    kernels = jax.random.normal(keys[1], (1, 4, 4, 7))
    y, vjp = jax.vjp(spread, pixels, kernels)
    grad = jax.random.normal(keys[2], y.shape, "bfloat16")
    (found, exact) = (
        vjp(grad)[1][0],
        np.einsum(
            "nhawbc,nhwc->abc", np.asarray(grad, np.float64), np.asarray(pixels[0], np.float64)
        ),
    )
    np.testing.assert_allclose(found, exact, atol=1e-6 * np.abs(exact).max())


@pytest.mark.lowering
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form for CPUs")
def test_depthwise_gradients_store_no_factors_as_large_as_the_image():
    def loss(x, kernel, labels):
        return cross_entropy(nn.conv_transpose(x, kernel, 32, 16, groups=64), labels)

    x, kernel = (
        jax.ShapeDtypeStruct((1, 5, 8, 64), jnp.float32),
        jax.ShapeDtypeStruct((64, 64, 64, 1), jnp.float32),
    )
    labels = jax.ShapeDtypeStruct((1, 160, 256), jnp.uint8)
    gradients = (
        jax.jit(jax.grad(loss, (0, 1)), compiler_options=fcn_jax.compiler_options())
        .lower(x, kernel, labels)
        .compile()
    )
    assert gradients.memory_analysis().temp_size_in_bytes < 4 * 160 * 256 * 64 * 4
