"""Resizing of images as in PyTorch: bilinear, as two products with small matrices, and nearest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def upsample(
    x: Float[Array, "N H W C"], factor: int, mode: str = "bilinear"
) -> Float[Array, "N h w C"]:
    """Enlarge images by a factor; `torch.nn.functional.interpolate(scale_factor=factor)`.

    Args:
        x: f[N, H, W, C], H and W at least 1.
        factor: at least 1.
        mode: "bilinear", as `resize_bilinear`, or "nearest", which repeats each pixel.

    Returns:
        f[N, factor H, factor W, C] in the dtype of `x`.

    Raises:
        ValueError: the factor is less than 1, or the mode is unknown.
    """
    if factor < 1:
        raise ValueError(f"factor is {factor}; it must be at least 1")
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"mode is '{mode}'; it must be 'bilinear' or 'nearest'")
    if mode == "bilinear":
        return resize_bilinear(x, (factor * x.shape[1], factor * x.shape[2]))
    return resize_nearest(x, (factor * x.shape[1], factor * x.shape[2]))


def resize_nearest(
    x: Float[Array, "N H W C"], size: tuple[int, int]
) -> Float[Array, "N {size[0]} {size[1]} C"]:
    """Resize images by picking pixels; `torch.nn.functional.interpolate(mode="nearest")`.

    Pixel i of a side of n pixels is pixel floor(i * (H / n)) of the image, with H / n rounded to
    float32. That is not the nearest pixel; PyTorch calls that one "nearest-exact".

    Args:
        x: f[N, H, W, C], H and W at least 1.
        size: height h and width w of the result, at least 1.

    Returns:
        f[N, h, w, C] in the dtype of `x`.

    Raises:
        ValueError: a side of `x` or `size` is 0.
    """
    _require_pixels(x, size)
    for axis, new in enumerate(size, start=1):
        x = _pick(x, axis, new)
    return x


def _pick(x: jax.Array, axis: int, new: int) -> jax.Array:
    picked, factor = nearest_pixels(x.shape[axis], new), -(-new // x.shape[axis])
    if np.array_equal(picked, np.arange(new) // factor):
        # The gradient of a gather is a scatter, which is slow.
        return lax.slice_in_dim(x.repeat(factor, axis), 0, new, axis=axis)
    return x.take(picked, axis, mode="clip")


def nearest_pixels(old: int, new: int) -> np.ndarray:
    """The pixels i32[new] of a side of `old` pixels that `resize_nearest` picks."""
    scale = np.float32(old) / np.float32(new)
    picked = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int32)
    return np.minimum(picked, old - 1)


def resize_bilinear(
    x: Float[Array, "N H W C"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "N {size[0]} {size[1]} C"]:
    """Resize images bilinearly; `torch.nn.functional.interpolate(mode="bilinear")`.

    Each pixel is a weighted mean of the four around it, also when the image shrinks: there is no
    antialiasing, as in torchvision's segmentation models.

    Args:
        x: f[N, H, W, C], H and W at least 1. In bfloat16 positions are rounded to 1/256 of a pixel,
            so that the weights are exact.
        size: height h and width w of the result, at least 1.
        align_corners: align the centers of the corner pixels instead of their outer edges.

    Returns:
        f[N, h, w, C] in the dtype of `x`.

    Raises:
        ValueError: a side of `x` or `size` is 0.
    """
    _require_pixels(x, size)
    batch, rows, cols, channels = x.shape
    if (rows, cols) == tuple(size):
        return x
    # Two products take a quarter of the time of gathering and mixing the neighbors, forward and
    # backward on a CPU: the gradient of a gather is a scatter (`python -m benchmarks.operators`).
    # Without the precision, TPUs and TF32 would round float32 factors.
    down, across = (
        _interpolation(*sides, align_corners, x.dtype)
        for sides in zip((rows, cols), size, strict=True)
    )
    x = jnp.einsum("nhwc,vw->nhvc", x, across, precision=lax.Precision.HIGHEST)
    # A copy of the matrix for each image makes a batch of plain products. Otherwise XLA would
    # transpose the whole result.
    x = jnp.einsum(
        "nuh,nhk->nuk",
        jnp.broadcast_to(down, (batch, *down.shape)),
        x.reshape(batch, rows, size[1] * channels),
        precision=lax.Precision.HIGHEST,
    )
    return x.reshape(batch, *size, channels)


def _require_pixels(x: jax.Array, size: tuple[int, int]) -> None:
    rows, cols = x.shape[1:3]
    if min(rows, cols, *size) < 1:
        raise ValueError(
            f"cannot resize {rows}x{cols} pixels to {size[0]}x{size[1]}: each side must be at "
            "least 1"
        )


def _interpolation(old: int, new: int, align_corners: bool, dtype: np.dtype) -> jax.Array:
    """Matrix [new, old]: in each row the weights of the two pixels around a new one; sum 1."""
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
