"""A crop that is rotated about its center."""

from __future__ import annotations

import math

import cv2
import numpy as np

from fcn_jax.data.augment.channels import in_groups
from fcn_jax.plugins.api import IGNORE_INDEX


def rotated_crop(
    image: np.ndarray,
    mask: np.ndarray,
    size: tuple[int, int],
    *,
    origin: tuple[int, int],
    degrees: float,
    fill: float | tuple[float, ...] = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rotate an image and its mask about the center of a window, and cut out the window.

    The corners of the window show what lies around it in the image.

    Args:
        image: u8 or f32[H,W,C].
        mask: u8[H,W] or u8[H,W,K].
        size: height h and width w of the window, in pixels.
        origin: row and column of the image's pixel at the top left of the window before the
            rotation; negative above or left of the image.
        degrees: counterclockwise, as in `torchvision.transforms.functional.rotate`.
        fill: value of each channel, or one value for all, outside of the image; the mask is
            `IGNORE_INDEX` there.

    Returns:
        [h,w,C] by bilinear interpolation, and u8[h,w] or u8[h,w,K] of the nearest pixels.
    """
    height, width = size
    # The matrix takes x and y in the window to those in the image.
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (width - 1) / 2, (height - 1) / 2
    matrix = np.array(
        [
            [cosine, -sine, origin[1] + x - cosine * x + sine * y],
            [sine, cosine, origin[0] + y - sine * x - cosine * y],
        ]
    )
    # Only the part of the image that the window can show.
    corners = matrix @ np.array([[-1, width, -1, width], [-1, -1, height, height], [1, 1, 1, 1]])
    left, top = (_start(line, side) for line, side in zip(corners, mask.shape[1::-1], strict=True))
    right, bottom = np.ceil(corners.max(axis=1)).astype(int) + 2
    part = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
    matrix[:, 2] -= left, top

    def warped(pixels: np.ndarray, interpolation: int, border: list[float]) -> np.ndarray:
        return np.asarray(
            cv2.warpAffine(
                pixels,
                matrix,
                (width, height),
                flags=interpolation | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=border,
            )
        )

    values = np.broadcast_to(fill, image.shape[2]).tolist()
    if image.shape[2] == 3:
        # OpenCV warps four channels in a third of the time of three.
        four = cv2.cvtColor(np.ascontiguousarray(image[part]), cv2.COLOR_RGB2RGBA)
        four = warped(four, cv2.INTER_LINEAR, [*values, 0])
        rotated = np.asarray(cv2.cvtColor(four, cv2.COLOR_RGBA2RGB))
    else:
        rotated = in_groups(
            lambda group, channels: warped(group, cv2.INTER_LINEAR, values[channels]), image[part]
        )

    def labels(group: np.ndarray, _: slice) -> np.ndarray:
        return warped(group, cv2.INTER_NEAREST, [IGNORE_INDEX] * 4)

    shown = mask[part]
    return rotated, in_groups(labels, shown) if mask.ndim == 3 else labels(shown, slice(None))


def _start(coordinates: np.ndarray, side: int) -> int:
    """The first row or column that is needed."""
    return min(max(0, math.floor(coordinates.min()) - 1), side - 1)
