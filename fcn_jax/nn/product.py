"""Matrix product with a parameter, whose gradient is exact enough in bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """`x` f[..., I] times `matrix` f[I, O] rounded to the dtype of `x`; the matrix's gradient is summed in float32.

    That is over pixels, images and, where the batch lies on several devices, between those: the plain product's gradient would be
    rounded to bfloat16 before the devices add theirs up.
    """
    return x @ matrix.astype(x.dtype)


def _forward(x: jax.Array, matrix: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, matrix), (x, matrix)


def _backward(residuals: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, matrix = residuals
    axes = tuple(range(x.ndim - 1))
    # In this order XLA for CPUs transposes the gradient, not `x`, whose computation it would repeat within the transposition.
    wide = lax.dot_general(grad, x, ((axes, axes), ((), ())), preferred_element_type=jnp.float32)
    return grad @ matrix.T.astype(grad.dtype), wide.T.astype(matrix.dtype)


product.defvjp(_forward, _backward)
