"""Resizing of images of any number of channels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

_AT_ONCE = 4
"""The most channels that OpenCV resizes by area."""


def resize(image: np.ndarray, *arguments: Any, **settings: Any) -> np.ndarray:
    """`cv2.resize` of [H,W,C], for any number C of channels; it keeps an axis of one channel."""
    groups = [image[..., at : at + _AT_ONCE] for at in range(0, image.shape[2], _AT_ONCE)]
    parts = [
        cv2.resize(group if len(groups) == 1 else group.copy(), *arguments, **settings)
        for group in groups
    ]
    whole = parts[0] if len(parts) == 1 else np.dstack(parts)
    return np.asarray(whole).reshape(*whole.shape[:2], image.shape[2])
