"""Random blur, JPEG compression and cutout."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

from fcn_jax.config.augment import CutoutConfig
from fcn_jax.plugins.api import IGNORE_INDEX


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; the image is mirrored at its edges.

    `torchvision.transforms.functional.gaussian_blur` with a kernel of 2 round(3 sigma) + 1 pixels.

    Args:
        image: u8 or f32[H,W,C].
        sigma: standard deviation of the Gaussian in pixels, above 0.

    Returns:
        An array of the same shape and dtype; the image itself if sigma is below 1/6.
    """
    reach = round(3 * sigma)
    if reach == 0:
        return image
    kernel = cv2.getGaussianKernel(2 * reach + 1, sigma, cv2.CV_32F)
    # GaussianBlur takes longer, and rounds the weights of 8-bit images to 1/256.
    blurred = cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(blurred).reshape(image.shape)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress as JPEG with colors of half the size (4:2:0), as Pillow and OpenCV do by default.

    Args:
        image: u8[H,W,3] RGB or u8[H,W,1] gray.
        quality: 1 to 100.

    Returns:
        The decoded image.
    """
    colors = "RGB" if image.shape[2] == 3 else "GRAY"
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image),
        quality,
        colorspace=colors,
        colorsubsampling="420",
        fastdct=False,
    )
    return np.asarray(simplejpeg.decode_jpeg(data, colorspace=colors))


def random_cutout(
    image: np.ndarray,
    mask: np.ndarray,
    settings: CutoutConfig,
    rng: np.random.Generator,
    fill: float | tuple[float, ...] = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rectangles, and fill them by `cutout`.

    Their centers are uniform over the image, so that they may be cut off at its edges, as in
    arXiv:1708.04552.

    Args:
        image: [H,W,C].
        mask: u8[H,W] or u8[H,W,K].
        settings: number and sizes of the rectangles, and what their labels become.
        rng: the source of all randomness.
        fill: value of each channel, or one value for all.
    """
    sides = np.array(mask.shape[:2])
    low, high = settings.size
    boxes = []
    for _ in range(settings.holes):
        lengths = np.maximum(1, np.rint(sides * rng.uniform(low, high, 2)))
        starts = np.rint(sides * rng.random(2) - lengths / 2)
        top, left = np.clip(starts, 0, sides).astype(int).tolist()
        bottom, right = np.clip(starts + lengths, 0, sides).astype(int).tolist()
        boxes.append((top, left, bottom, right))
    return cutout(image, mask, boxes, ignore=settings.labels == "ignore", fill=fill)


def cutout(
    image: np.ndarray,
    mask: np.ndarray,
    boxes: list[tuple[int, int, int, int]],
    *,
    ignore: bool,
    fill: float | tuple[float, ...] = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Fill rectangles with one color.

    Args:
        image: [H,W,C].
        mask: u8[H,W] or u8[H,W,K].
        boxes: (top, left, bottom, right) of each rectangle, without the last row and column.
        ignore: whether the labels in the rectangles become `IGNORE_INDEX`.
        fill: value of each channel, or one value for all.

    Returns:
        New arrays; the mask itself if its labels are kept.
    """
    image = image.copy()
    mask = mask.copy() if ignore else mask
    for top, left, bottom, right in boxes:
        image[top:bottom, left:right] = fill
        if ignore:
            mask[top:bottom, left:right] = IGNORE_INDEX
    return image, mask
