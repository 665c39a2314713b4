"""Bilinear resizing with PyTorch's meaning, as two products with small matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def resize_bilinear(
    x: jax.Array, size: tuple[int, int], *, align_corners: bool = False
) -> jax.Array:
    """Resize images, as `torch.nn.functional.interpolate(mode="bilinear", antialias=False)` does, up or down.

    Every pixel is a mean of the four around it, also where the image shrinks: without antialiasing,
    as in torchvision's segmentation models.

    Args:
        x: f[N, H, W, C], H and W at least 1. In bfloat16 positions are rounded to 1/256 of a pixel,
            so that the weights are exact.
        size: height h and width w of the result, at least 1.
        align_corners: the corners' centers stay in their places, in place of the corners' edges.

    Returns:
        [N, h, w, C] in the dtype of `x`.

    Raises:
        ValueError: a side of `x` or `size` is 0.
    """
    batch, rows, cols, channels = x.shape
    if min(rows, cols, *size) < 1:
        raise ValueError(
            f"cannot resize {rows}x{cols} pixels to {size[0]}x{size[1]}: each side must be at least 1"
        )
    size = (size[0], size[1])
    if (rows, cols) == size:
        return x
    # Two products take a quarter of the time of gathering and mixing the neighbors, forward and
    # backward on a CPU: the gradient of a gather is a scatter (`python -m benchmarks.operators`).
    # TPUs and TF32 would round float32 factors without the precision.
    down, across = (
        _interpolation(*sides, align_corners, x.dtype)
        for sides in zip((rows, cols), size, strict=True)
    )
    x = jnp.einsum("nhwc,vw->nhvc", x, across, precision=lax.Precision.HIGHEST)
    # A copy of the matrix for each image makes a batch of plain products. XLA would transpose the
    # whole result otherwise.
    x = jnp.einsum(
        "nuh,nhk->nuk",
        jnp.broadcast_to(down, (batch, *down.shape)),
        x.reshape(batch, rows, size[1] * channels),
        precision=lax.Precision.HIGHEST,
    )
    return x.reshape(batch, *size, channels)


def _interpolation(old: int, new: int, align_corners: bool, dtype: np.dtype) -> jax.Array:
    """Matrix [new, old] whose rows hold the weights, which add to 1, of the one or two pixels that each new pixel lies between."""
    target = np.arange(new)
    if align_corners:
        position = target * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        position = np.clip((target + 0.5) * (old / new) - 0.5, 0, old - 1)
    if dtype == jnp.bfloat16:
        position = np.round(position * 256) / 256
    left = position.astype(np.int64)
    weight = position - left
    matrix = np.zeros((new, old))
    matrix[target, left] = 1 - weight
    matrix[target, np.minimum(left + 1, old - 1)] += weight
    return jnp.asarray(matrix, dtype)
