"""Windows of an image for attention, as in Swin transformers.

Liu et al. 2021, arXiv:2103.14030; `timm/models/swin_transformer.py`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float


def to_windows(x: Any, window: int) -> Any:
    """Cut images into square windows.

    Args:
        x: f[N, H, W, C] of JAX or numpy; `window` divides H and W.
        window: side of a window, at least 1.

    Returns:
        f[N, M, window^2, C], with M = H W / window^2 windows from left to right, then down.

    Raises:
        ValueError: `window` does not divide a side.
    """
    batch, height, width, channels = x.shape
    if height % window or width % window:
        raise ValueError(
            f"images of {height}x{width} cannot be cut into windows of {window}x{window}; pad them"
        )
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, window * window, channels)


def from_windows(
    windows: Float[Array, "N M T C"], size: tuple[int, int], window: int
) -> Float[Array, "N {size[0]} {size[1]} C"]:
    """The inverse of `to_windows`: f[N, M, window^2, C] -> f[N, *size, C]."""
    batch, _, _, channels = windows.shape
    rows, cols = size[0] // window, size[1] // window
    x: jax.Array = windows.reshape(batch, rows, cols, window, window, channels)
    return x.swapaxes(2, 3).reshape(batch, *size, channels)


def relative_positions(window: int) -> np.ndarray:
    """Number of the relative position of each pair of pixels in a window.

    Args:
        window: side of the window, at least 1.

    Returns:
        i64[window^2, window^2] from 0 to (2 window - 1)^2 - 1: indices into a table of biases.
    """
    rows, cols = (axis.reshape(-1) for axis in np.mgrid[:window, :window])
    down = rows[:, None] - rows + window - 1
    across = cols[:, None] - cols + window - 1
    return down * (2 * window - 1) + across


def shift_mask(size: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """Bias that separates pixels which only the cyclic shift has put into one window.

    Args:
        size: height and width of the image; `window` divides both.
        window: side of a window.
        shift: pixels by which the image was rolled up and to the left, 1 to window - 1.

    Returns:
        f32[M, window^2, window^2], to be added to the scores: 0, or -100 for pixels that were at
        opposite sides of the image.
    """
    sides = []
    for length in size:
        place = np.arange(length)
        sides.append((place >= length - window).astype(int) + (place >= length - shift))
    region = (3 * sides[0][:, None] + sides[1]).reshape(1, *size, 1)
    regions = to_windows(region, window)[0, :, :, 0]
    apart = regions[:, :, None] != regions[:, None, :]
    return np.where(apart, np.float32(-100), np.float32(0))
