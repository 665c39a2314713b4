"""The core of a depthwise transposed convolution: each pixel becomes a block of pixels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def spread(pixels: tuple[jax.Array, ...], kernels: jax.Array) -> jax.Array:
    """Multiply each pixel by a kernel of s x s pixels, and sum over T images.

    Sums and the gradients of the kernels are computed in float32.

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
    """`spread` with kernels f32[T, s, s, C] and JAX's autodiff."""
    # One loop, into which XLA fuses the sum.
    blocks = [
        part[:, :, None, :, None].astype(jnp.float32) * kernel
        for part, kernel in zip(pixels, kernels[:, None, None, :, None], strict=True)
    ]
    return sum(blocks[1:], blocks[0]).astype(pixels[0].dtype)


def whole_grads(
    pixels: tuple[jax.Array, ...], kernels: jax.Array, grad: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Gradients of `summed` by autodiff; those of the kernels are float32."""
    return jax.vjp(summed, pixels, kernels)[1](grad)


def grads_by_rows(
    pixels: tuple[jax.Array, ...], kernels: jax.Array, grad: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """`whole_grads` for CPUs, one row of blocks at a time.

    Otherwise XLA would store each of the factors, which are as large as the gradient. If the images
    lie on several CPU devices, the gradients of the kernels are added up row by row.
    """

    def row(total: list[jax.Array], number: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        # Indexed here: as an input of `scan` the rows would have to be the first axis, a copy.
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
