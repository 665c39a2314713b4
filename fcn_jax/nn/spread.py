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
    return summed(pixels, kernels)


def summed(pixels: tuple[jax.Array, ...], kernels: jax.Array) -> jax.Array:
    """`spread` as it stands, with JAX's own gradients."""
    dtype = pixels[0].dtype
    wide = kernels.astype(dtype).astype(jnp.float32)[:, None, None, :, None]
    # One loop, into which XLA fuses the sum.
    blocks = [part[:, :, None, :, None].astype(jnp.float32) * kernel for part, kernel in zip(pixels, wide, strict=True)]
    return sum(blocks[1:], blocks[0]).astype(dtype)


def _forward(pixels: tuple[jax.Array, ...], kernels: jax.Array) -> tuple[jax.Array, Any]:
    return spread(pixels, kernels), (pixels, kernels)


def _backward(residuals: Any, grad: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
    pixels, kernels = residuals
    return lax.platform_dependent(
        pixels, kernels, grad, cpu=grads_by_rows, default=lambda *args: jax.vjp(summed, *args[:2])[1](args[2])
    )


def grads_by_rows(pixels: tuple[jax.Array, ...], kernels: jax.Array, grad: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The gradients on CPUs, one row of blocks after the other: of whole images XLA stores each of the factors, as large as the gradient.

    `grad` is f[N, h, s, w, s, C]; the others, and what comes back, are as for `spread`.
    """
    wide = kernels.astype(grad.dtype).astype(jnp.float32)[:, None, :, None]

    def row(total: list[jax.Array], number: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        # Taken by its number: `scan` by itself wants the rows in front, which would copy the gradient.
        *part, row_grad = (lax.dynamic_index_in_dim(x, number, 1, keepdims=False).astype(jnp.float32) for x in (*pixels, grad))
        by_pixels = [(row_grad * kernel).sum((1, 3)) for kernel in wide]
        by_kernels = [(row_grad * x[:, None, :, None]).sum((0, 2)) for x in part]
        return [have + more for have, more in zip(total, by_kernels, strict=True)], by_pixels

    start = [jnp.zeros(kernels.shape[1:], jnp.float32) for _ in pixels]
    of_kernels, of_pixels = lax.scan(row, start, jnp.arange(grad.shape[1]))
    back = tuple(x.swapaxes(0, 1).astype(part.dtype) for x, part in zip(of_pixels, pixels, strict=True))
    return back, jnp.stack(of_kernels).astype(kernels.dtype)


spread.defvjp(_forward, _backward)
