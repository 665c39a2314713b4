"""Where to crop, so that no class covers most of the crop."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from fcn_jax.config.augment import CropConfig
from fcn_jax.plugins.api import IGNORE_INDEX

Place = tuple[float, float]


def choose(
    window: Callable[[Place], np.ndarray],
    first: Place,
    settings: CropConfig,
    rng: np.random.Generator,
) -> Place:
    """Return the first of several random places whose most frequent class is rare enough.

    mmsegmentation's `RandomCrop` with `cat_max_ratio` tries 10 more places and takes the last one;
    this function takes the place with the smallest share, if none is rare enough.

    Args:
        window: place -> the part of the mask that is cropped there, u8[h,w].
        first: the first place; see `fcn_jax.data.geometry.crop`.
        settings: the largest share, and the number of places.
        rng: draws the other places.
    """
    best, smallest = first, largest_share(window(first))
    for _ in range(settings.tries - 1):
        if smallest <= settings.max_class_share:
            break
        top, left = rng.random(2).tolist()
        share = largest_share(window((top, left)))
        if share < smallest:
            best, smallest = (top, left), share
    return best


def largest_share(mask: np.ndarray) -> float:
    """Return the share of the most frequent class in the pixels that are not ignored.

    Args:
        mask: u8[H,W].

    Returns:
        Above 0, at most 1; 2 if all pixels are ignored.
    """
    # OpenCV counts in float32, which is exact up to 2^24.
    if mask.size < 1 << 24:
        contiguous = np.ascontiguousarray(mask)
        counts = cv2.calcHist([contiguous], [0], None, [256], [0, 256]).reshape(-1)
    else:
        counts = np.bincount(mask.reshape(-1), minlength=256)
    counts[IGNORE_INDEX] = 0
    total = counts.sum()
    return float(counts.max() / total) if total else 2.0
