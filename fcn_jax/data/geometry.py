"""Resizing, crops and mirroring of an image and its mask. No input is changed in place."""

from __future__ import annotations

import cv2
import numpy as np

from fcn_jax.data.augment.channels import in_groups
from fcn_jax.plugins.api import IGNORE_INDEX, Example


def resize(example: Example, factor: float) -> Example:
    """Scale an image and its mask.

    Args:
        example: its mask of size H, W.
        factor: over 0. The image is resized bilinearly when enlarged and by area when shrunk, the
            mask to the nearest pixel.

    Returns:
        An example of size max(1, round(H * factor)), max(1, round(W * factor)).
    """
    name, image, mask = example
    whole = (mask.shape[0], mask.shape[1])
    return Example(name, resize_image(image, whole, factor), resize_mask(mask, factor))


def resize_image(
    image: np.ndarray, whole: tuple[int, int], factor: float, *, reduction: int = 1
) -> np.ndarray:
    """Scale an image as `resize` does.

    Args:
        image: u8 or f32[H,W,C], or with both sides divided by `reduction`, rounded up.
        whole: H and W.
        factor: over 0.
        reduction: the factor by which the image is reduced already: each of its pixels is the mean
            of `reduction` x `reduction` pixels of the whole image, counted from the top left. At
            most 1 / factor.

    Returns:
        [max(1, round(H * factor)), max(1, round(W * factor)), C].
    """
    height, width = size = _resized(whole, factor)
    if size == whole:
        return image
    # The last pixels of a reduced image may lie partly beyond the edge. So OpenCV gets the scale,
    # from which it computes the size; a surplus row or column is cut off.
    down, across = (to * reduction / side for to, side in zip(size, whole, strict=True))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR

    def scaled(group: np.ndarray, _: slice) -> np.ndarray:
        resized = cv2.resize(group, None, fx=across, fy=down, interpolation=interpolation)
        return np.asarray(resized[:height, :width])

    return in_groups(scaled, image)


def resize_mask(mask: np.ndarray, factor: float) -> np.ndarray:
    """Scale a mask u8[H,W] or u8[H,W,K] as `resize` does."""
    height, width = size = _resized((mask.shape[0], mask.shape[1]), factor)
    if size == mask.shape[:2]:
        return mask

    # INTER_NEAREST takes the pixel at floor(x / factor), up to half a pixel off the image's grid;
    # INTER_NEAREST_EXACT has the image's pixel centers.
    def scaled(labels: np.ndarray) -> np.ndarray:
        size = (width, height)
        return np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT))

    return in_groups(lambda group, _: scaled(group), mask) if mask.ndim == 3 else scaled(mask)


def _resized(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def crop(
    example: Example,
    size: tuple[int, int],
    *,
    at: tuple[float, float],
    fill: float | tuple[float, ...] = 0,
) -> Example:
    """Cut out a window, or place a smaller example into it.

    Args:
        example: of size H, W.
        size: height and width of the window, in pixels.
        at: top and left, each in [0, 1): the place of the window between its two extremes, or of a
            smaller example in the window.
        fill: value of each channel, or one value for all, of the image's padding; the mask's
            padding is `IGNORE_INDEX`.

    Returns:
        An example of exactly `size`.
    """
    source, target = window_of(example, size, at)
    image, mask = example.image[source], example.mask[source]
    if mask.shape[:2] != size:
        padded = (
            np.full((*size, image.shape[2]), fill, image.dtype),
            np.full((*size, *mask.shape[2:]), IGNORE_INDEX, np.uint8),
        )
        padded[0][target], padded[1][target] = image, mask
        image, mask = padded
    return Example(example.id, image, mask)


_Slices = tuple[slice, slice]


def window_of(
    example: Example, size: tuple[int, int], at: tuple[float, float]
) -> tuple[_Slices, _Slices]:
    """The part of an example that a crop shows, and its place in the crop."""
    source, target = [], []
    for have, wanted, place in zip(example.mask.shape[:2], size, at, strict=True):
        offset = int(place * (abs(have - wanted) + 1))
        start, pad = (offset, 0) if have >= wanted else (0, offset)
        length = min(have, wanted)
        source.append(slice(start, start + length))
        target.append(slice(pad, pad + length))
    return (source[0], source[1]), (target[0], target[1])


def flip_left_right(example: Example) -> Example:
    """Mirror an image and its mask left to right; twice is the identity."""
    return _flip(example, 1)


def flip_top_bottom(example: Example) -> Example:
    """Mirror an image and its mask top to bottom; twice is the identity."""
    return _flip(example, 0)


def _flip(example: Example, axis: int) -> Example:
    # OpenCV copies in a twentieth of the time that NumPy takes to copy a mirrored view. It drops
    # the axis of a single channel.
    name, image, mask = example
    flipped = np.asarray(cv2.flip(image, axis)).reshape(image.shape)
    return Example(name, flipped, np.asarray(cv2.flip(mask, axis)).reshape(mask.shape))
