import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax import nn


def test_bias_gradient_counts_all_pixels_in_bfloat16():
    x, bias = jnp.zeros((2, 300, 400, 3), jnp.bfloat16), jnp.ones(3)

    @jax.jit
    @jax.grad
    def gradient(bias):
        return nn.add_bias(x, bias).astype(jnp.float32).sum()

    np.testing.assert_array_equal(gradient(bias), [2 * 300 * 400] * 3)


def test_adds_a_bias_in_the_dtype_of_the_pixels():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 3, 4)), jnp.bfloat16)
    bias = jnp.asarray([0.1, -2, 3, 1e-3])
    y, vjp = jax.vjp(nn.add_bias, x, bias)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, x + bias.astype(jnp.bfloat16))
    grad_x, grad_bias = vjp(jnp.ones_like(y))
    assert (grad_x.dtype, grad_bias.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(grad_bias, [6] * 4)
