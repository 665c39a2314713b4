import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.nn._matmul import product


@given(
    shape=st.lists(st.integers(1, 5), max_size=3),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
)
@pytest.mark.slow
def test_matches_the_plain_products_in_float32(shape, inputs, outputs):
    rng = np.random.default_rng(0)
    x, matrix, weights = (
        jnp.asarray(rng.standard_normal(size), jnp.float32)
        for size in ((*shape, inputs), (inputs, outputs), (*shape, outputs))
    )
    y, vjp = jax.vjp(product, x, matrix)
    plain, plain_vjp = jax.vjp(jnp.matmul, x, matrix)
    for ours, theirs in zip((y, *vjp(weights)), (plain, *plain_vjp(weights)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("shape", [(1001, 2), (7, 11, 13, 2)])
def test_rounds_the_matrix_to_bfloat16_but_not_its_gradient(shape):
    x = jnp.ones(shape, jnp.bfloat16)
    y, vjp = jax.vjp(product, x, jnp.full((2, 3), 1 + 2**-12, jnp.float32))
    grad_x, grad = vjp(jnp.ones_like(y))
    assert (y.dtype, grad_x.dtype, grad.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert (np.asarray(y, np.float32) == 2).all()
    assert (np.asarray(grad) == 1001).all(), "bfloat16 would make it 1000"
