"""Pixels spread to blocks by a kernel for each channel: what a depthwise transposed convolution does with a large stride."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def spread(pixels: tuple[jax.Array, ...], kernels: jax.Array) -> jax.Array:
    """Every pixel times a kernel, a block of s x s pixels for each, added up over T images; sums and kernels' gradients in float32.

    Args:
        pixels: T of f[N, h, w, C].
        kernels: f[T, s, s, C], rounded to the dtype of the pixels.

    Returns:
        f[N, h, s, w, s, C].
    """
    return summed(pixels, _rounded(pixels, kernels))


def _rounded(pixels: tuple[jax.Array, ...], kernels: jax.Array) -> jax.Array:
    return kernels.astype(pixels[0].dtype).astype(jnp.float32)


def summed(pixels: tuple[jax.Array, ...], kernels: jax.Array) -> jax.Array:
    """`spread` of kernels that are f32[T, s, s, C], with JAX's own gradients."""
    # One loop, into which XLA fuses the sum.
    blocks = [
        part[:, :, None, :, None].astype(jnp.float32) * kernel
        for part, kernel in zip(pixels, kernels[:, None, None, :, None], strict=True)
    ]
    return sum(blocks[1:], blocks[0]).astype(pixels[0].dtype)


def whole_grads(
    pixels: tuple[jax.Array, ...], kernels: jax.Array, grad: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The gradients of `summed`, by JAX: those of the pixels in their dtype, and f32[T, s, s, C]."""
    return jax.vjp(summed, pixels, kernels)[1](grad)


def grads_by_rows(
    pixels: tuple[jax.Array, ...], kernels: jax.Array, grad: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """`whole_grads` for CPUs, one row of blocks after the other, as XLA would store each of the factors, as large as the gradient.

    Where the images lie on several CPU devices, the kernels' gradients are added up row by row.
    """

    def row(total: list[jax.Array], number: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        # Taken by its number: `scan` by itself wants the rows in front, which would copy the
        # gradient.
        *part, row_grad = (
            lax.dynamic_index_in_dim(x, number, 1, keepdims=False).astype(jnp.float32)
            for x in (*pixels, grad)
        )
        by_pixels = [(row_grad * kernel).sum((1, 3)) for kernel in kernels[:, None, :, None]]
        by_kernels = [(row_grad * x[:, None, :, None]).sum((0, 2)) for x in part]
        return [have + more for have, more in zip(total, by_kernels, strict=True)], by_pixels

    start = [jnp.zeros(kernels.shape[1:], jnp.float32) for _ in pixels]
    of_kernels, of_pixels = lax.scan(row, start, jnp.arange(grad.shape[1]))
    back = tuple(
        x.swapaxes(0, 1).astype(part.dtype) for x, part in zip(of_pixels, pixels, strict=True)
    )
    return back, jnp.stack(of_kernels)


def _forward(pixels: tuple[jax.Array, ...], kernels: jax.Array) -> tuple[jax.Array, Any]:
    return spread(pixels, kernels), (pixels, kernels)


def _backward(residuals: Any, grad: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
    pixels, kernels = residuals
    of_pixels, of_kernels = lax.platform_dependent(
        pixels, _rounded(pixels, kernels), grad, cpu=grads_by_rows, default=whole_grads
    )
    return of_pixels, of_kernels.astype(kernels.dtype)


spread.defvjp(_forward, _backward)
