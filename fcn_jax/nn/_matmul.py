"""Matrix product with a parameter, with an exact gradient in bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fcn_jax.nn._split_rows import rows_are_split


@jax.custom_vjp
def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiply `x` f[..., I] by `matrix` f[I, O], rounded to the dtype of `x`.

    The gradient of the matrix is summed in float32 over pixels, images and devices. The gradient of
    a plain product would be rounded to bfloat16 before it is summed over devices.
    """
    return x @ matrix.astype(x.dtype)


def _forward(x: jax.Array, matrix: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, matrix), (x, matrix)


def _backward(
    residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, matrix = residuals
    wide = _matrix_grad(x, grad)
    return grad @ matrix.T.astype(grad.dtype), wide.astype(matrix.dtype)


def _matrix_grad(x: jax.Array, grad: jax.Array) -> jax.Array:
    if not rows_are_split():
        return _flat_product(x, grad)
    return lax.platform_dependent(x, grad, cpu=_flat_product, default=_sum_of_products)


def _flat_product(x: jax.Array, grad: jax.Array) -> jax.Array:
    # XLA for CPUs lacks some bfloat16 products over several axes.
    return _sum_of_products(x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1]))


def _sum_of_products(x: jax.Array, grad: jax.Array) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    dimensions = ((axes, axes), ((), ()))
    return lax.dot_general(x, grad, dimensions, preferred_element_type=jnp.float32)


product.defvjp(_forward, _backward)
