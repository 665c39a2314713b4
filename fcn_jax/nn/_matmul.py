"""Matrix product with a parameter, with an exact gradient in bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


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
    wide = lax.platform_dependent(x, grad, cpu=_cpu_matrix_grad, default=_matrix_grad)
    return grad @ matrix.T.astype(grad.dtype), wide.astype(matrix.dtype)


def _matrix_grad(x: jax.Array, grad: jax.Array) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    return lax.dot_general(x, grad, ((axes, axes), ((), ())), preferred_element_type=jnp.float32)


def _cpu_matrix_grad(x: jax.Array, grad: jax.Array) -> jax.Array:
    """In this order XLA transposes the gradient, not `x`, which it would compute again to do so.

    The arrays are flattened because XLA for CPUs lacks some bfloat16 products over several axes.
    """
    return _matrix_grad(grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])).T


product.defvjp(_forward, _backward)
