"""The EXIF orientation of a picture: how to turn its stored pixels upright."""

from __future__ import annotations

import struct

import cv2
import numpy as np

TAG = 0x0112
"""The EXIF and TIFF tag that holds the orientation, 1 to 8."""


def checked(value: int) -> int:
    """The orientation of a tag's value: 1 to 8; other values mean 1 (upright)."""
    return value if 1 <= value <= 8 else 1


def from_exif(exif: bytes) -> int:
    """The orientation in a block of EXIF data.

    Args:
        exif: the block from its byte order mark; a header `Exif` before it is skipped.

    Returns:
        1 to 8; 1 (upright) if there is no valid tag.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(order + "HHI", exif, entry)
            if tag == TAG:
                # The standard requires a short; some writers use a long.
                form = order + ("I" if kind in (4, 9) else "H")
                (value,) = struct.unpack_from(form, exif, entry + 8)
                return checked(value)
    except struct.error:  # the block is cut off
        pass
    return 1


def swaps_sides(orientation: int) -> bool:
    """Whether turning the picture upright exchanges its height and width."""
    return orientation >= 5


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror stored pixels as a viewer does.

    Args:
        pixels: [H,W] or [H,W,C], of a dtype that OpenCV knows.
        orientation: 1 to 8.

    Returns:
        A contiguous array, [W,H] or [W,H,C] for orientations 5 to 8; `pixels` itself for
        orientation 1.
    """
    if orientation == 1:
        return pixels
    channels = pixels.shape[2:]
    if swaps_sides(orientation):
        many = pixels.ndim == 3 and pixels.shape[2] > 4  # more than OpenCV transposes
        pixels = pixels.swapaxes(0, 1).copy() if many else cv2.transpose(pixels)
    # After the transposition: mirror left to right (1), top to bottom (0), or both (-1).
    mirror = {2: 1, 3: -1, 4: 0, 5: None, 6: 1, 7: -1, 8: 0}[orientation]
    turned = pixels if mirror is None else cv2.flip(pixels, mirror)
    # OpenCV drops an axis of one channel.
    return np.asarray(turned).reshape(*turned.shape[:2], *channels)
