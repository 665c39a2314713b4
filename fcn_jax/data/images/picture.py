"""Images of any channels and values as pictures to look at."""

from __future__ import annotations

import cv2
import numpy as np

_SHOWN = (2.0, 98.0)
"""Percentiles of floating point values that become black and white."""


def as_rgb(image: np.ndarray) -> np.ndarray:
    """The first three channels of an image as a picture.

    Args:
        image: [H,W,C], u8, or numbers of any range. Of two channels, the first is shown.

    Returns:
        u8[H,W,3]: the image itself if it is u8[H,W,3]. Gray for one or two channels. Numbers are
        stretched from their 2nd to their 98th percentile, over all shown channels.
    """
    shown = image[..., : 3 if image.shape[2] >= 3 else 1]
    if shown.dtype != np.uint8:
        finite = shown[np.isfinite(shown)]
        low, high = np.percentile(finite, _SHOWN) if finite.size else (0.0, 1.0)
        # An image of one value is gray.
        stretched = (shown - low) * (255 / (high - low)) if high > low else np.full_like(shown, 128)
        shown = np.clip(np.nan_to_num(np.rint(stretched)), 0, 255).astype(np.uint8)
    if shown.shape[2] == 1:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(shown), cv2.COLOR_GRAY2RGB))
    return np.ascontiguousarray(shown)
