"""Matrix product with a parameter, whose gradient is exact enough in bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """`x` f[..., I] times `matrix` f[I, O] rounded to the dtype of `x`; the matrix's gradient is summed in float32.

    That is over pixels, images and, where the batch lies on several devices, between those: the
    plain product's gradient would be rounded to bfloat16 before the devices add theirs up.
    """
    return x @ matrix.astype(x.dtype)


def _forward(x: jax.Array, matrix: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, matrix), (x, matrix)


def _backward(
    residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, matrix = residuals
    wide = lax.platform_dependent(x, grad, cpu=_cpu_matrix_grad, default=_matrix_grad)
    return grad @ matrix.T.astype(grad.dtype), wide.astype(matrix.dtype)


def _matrix_grad(x: jax.Array, grad: jax.Array) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    return lax.dot_general(x, grad, ((axes, axes), ((), ())), preferred_element_type=jnp.float32)


def _cpu_matrix_grad(x: jax.Array, grad: jax.Array) -> jax.Array:
    """In this order XLA transposes the gradient, not `x`, whose computation it would repeat within the transposition.

    Flat, since its bfloat16 products over several axes are not implemented in each order.
    """
    return _matrix_grad(grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])).T


product.defvjp(_forward, _backward)
