"""OpenCV's functions for images of any number of channels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

AT_ONCE = 4
"""Channels that OpenCV resizes and warps at once."""


def in_groups(function: Callable[[np.ndarray, slice], np.ndarray], image: np.ndarray) -> np.ndarray:
    """Apply a function to all channels, at most four at once.

    Args:
        function: an image of these channels, the channels -> an image; it may lack the axis of a
            single channel, which OpenCV drops.
        image: [H,W,C].

    Returns:
        [h,w,C].
    """
    count = image.shape[2]
    if count <= AT_ONCE:
        result = function(image, slice(0, count))
        return result if result.ndim == 3 else result[..., None]
    parts = []
    for start in range(0, count, AT_ONCE):
        channels = slice(start, start + AT_ONCE)
        result = function(np.ascontiguousarray(image[..., channels]), channels)
        parts.append(result if result.ndim == 3 else result[..., None])
    return np.concatenate(parts, axis=-1)
