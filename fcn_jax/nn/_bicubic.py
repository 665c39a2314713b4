"""Bicubic resizing, as for the position embeddings of vision transformers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def resize_bicubic(
    x: Float[Array, "N H W C"], size: tuple[int, int], *, antialias: bool = False
) -> Float[Array, "N {size[0]} {size[1]} C"]:
    """Resize images bicubically; `torch.nn.functional.interpolate(mode="bicubic")`.

    The cubic has a = -0.75 without antialiasing, and a = -0.5 with it, as in PyTorch. The border is
    repeated without antialiasing; with it, pixels outside the image have no weight.

    Args:
        x: f[N, H, W, C], H and W at least 1.
        size: height h and width w of the result, at least 1.
        antialias: when the image shrinks, average over as many pixels as become one.

    Returns:
        f[N, h, w, C] in the dtype of `x`, computed in float32.

    Raises:
        ValueError: a side of `x` or `size` is 0.
    """
    rows, cols = x.shape[1:3]
    if min(rows, cols, *size) < 1:
        raise ValueError(
            f"cannot resize {rows}x{cols} pixels to {size[0]}x{size[1]}: each side must be at "
            "least 1"
        )
    if (rows, cols) == tuple(size):
        return x
    weights = _antialiased if antialias else _interpolating
    down, across = (
        jnp.asarray(weights(*sides), jnp.float32) for sides in zip((rows, cols), size, strict=True)
    )
    wide = x.astype(jnp.float32)
    y = jnp.einsum("nhwc,vw->nhvc", wide, across, precision=lax.Precision.HIGHEST)
    y = jnp.einsum("uh,nhvc->nuvc", down, y, precision=lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' convolution kernel at a distance in pixels; IEEE Trans. ASSP 29 (1981), 1153."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _interpolating(old: int, new: int) -> np.ndarray:
    """Matrix [new, old]: in each row the weights of the four pixels around a new one."""
    position = (np.arange(new) + 0.5) * (old / new) - 0.5
    left = np.floor(position).astype(int)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        index = np.clip(left + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(new), index), _cubic(position - (left + tap), -0.75))
    return matrix


def _antialiased(old: int, new: int) -> np.ndarray:
    """Matrix [new, old] of a kernel that is as wide as a new pixel, if that is wider than an old.

    Source: `aten/src/ATen/native/cpu/UpSampleKernel.cpp`, which follows Pillow.
    """
    scale = old / new
    width = max(scale, 1.0)
    center = (np.arange(new)[:, None] + 0.5) * scale
    first = np.maximum((center - 2 * width + 0.5).astype(int), 0)
    end = np.minimum((center + 2 * width + 0.5).astype(int), old)
    pixel = np.arange(old)[None, :]
    weight = _cubic((pixel - center + 0.5) / width, -0.5)
    matrix = np.where((pixel >= first) & (pixel < end), weight, 0.0)
    return matrix / matrix.sum(1, keepdims=True)
