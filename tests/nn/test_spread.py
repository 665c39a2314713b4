import jax
import numpy as np
import pytest

from fcn_jax.nn.spread import grads_by_rows, spread, summed


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-7)])
def test_gradients_row_by_row_equal_those_of_whole_images(dtype, tolerance):
    keys = jax.random.split(jax.random.key(0), 4)
    pixels = tuple(jax.random.normal(key, (2, 3, 5, 7), dtype) for key in keys[:2])
    kernels = jax.random.normal(keys[2], (2, 4, 4, 7))
    grad = jax.random.normal(keys[3], (2, 3, 4, 5, 4, 7), dtype)
    by_rows = jax.jit(grads_by_rows)(pixels, kernels, grad)
    whole = jax.vjp(summed, pixels, kernels)[1](grad)
    assert np.array_equal(spread(pixels, kernels), summed(pixels, kernels))
    for a, b in zip(jax.tree.leaves(by_rows), jax.tree.leaves(whole), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())
