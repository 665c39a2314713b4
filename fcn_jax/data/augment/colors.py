"""Random changes of the colors of 8-bit RGB images."""

from __future__ import annotations

import cv2
import numpy as np

from fcn_jax.config.augment import PhotometricConfig

_BYTES = np.arange(256, dtype=np.float32)


def jitter_colors(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float = 0.0
) -> np.ndarray:
    """Change brightness, then contrast, saturation and hue, as torchvision's functions define them.

    `torchvision.transforms.functional.adjust_brightness`, `adjust_contrast`, `adjust_saturation`
    and `adjust_hue`, without rounding between the first three.

    Args:
        image: u8[H,W,3] RGB.
        brightness: factor of every value; 1 changes nothing.
        contrast: factor of the distance from the mean gray of the image.
        saturation: factor of the distance from each pixel's own gray.
        hue: turn of the color circle, -0.5 to 0.5; 0 changes nothing.

    Returns:
        u8[H,W,3], clipped to 0 to 255.
    """
    if not brightness == contrast == saturation == 1:
        image = _affine(image, brightness, contrast, saturation)
    return shift_hue(image, hue) if hue else image


def _affine(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    gray_weights = np.array([0.299, 0.587, 0.114])
    # OpenCV's sums are exact like NumPy's, which take a hundred times as long.
    gray_mean = float(np.array(cv2.sumElems(image)[:3]) / (image.size // 3) @ gray_weights)
    # The three steps are affine in the color, so one matrix and one offset suffice:
    # x -> S (c b x + (1 - c) b m), where S = s I + (1 - s) 1 w^T does not change grays, and so not
    # the offset.
    grays = np.outer(np.ones(3), gray_weights)
    matrix = (saturation * np.eye(3) + (1 - saturation) * grays) * contrast * brightness
    offset = np.full((3, 1), (1 - contrast) * brightness * gray_mean)
    return np.asarray(cv2.transform(image, np.hstack([matrix, offset])), np.uint8)


def shift_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turn the color circle of an image u8[H,W,3] RGB; `turn` = 1 is a full turn.

    The hue is rounded to 1/256 of a turn, as by `torchvision.transforms.functional.adjust_hue` of a
    Pillow image.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # wraps around
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def random_photometric(
    image: np.ndarray, settings: PhotometricConfig, rng: np.random.Generator
) -> np.ndarray:
    """Draw the parameters of `photometric`, and apply it.

    mmsegmentation's `PhotoMetricDistortion`: brightness, contrast, saturation and hue change with
    probability 1/2 each, and contrast is the second step or the last one.

    Args:
        image: u8[H,W,3] RGB.
        settings: ranges of the parameters.
        rng: the source of all randomness, which always draws the same number of values.
    """
    changes = rng.random(4) < 0.5
    amounts = rng.random(4).tolist()
    (low, high), (dull, vivid) = settings.contrast_range, settings.saturation_range
    return photometric(
        image,
        brightness=settings.brightness_delta * (2 * amounts[0] - 1) if changes[0] else 0.0,
        contrast=low + (high - low) * amounts[1] if changes[1] else 1.0,
        saturation=dull + (vivid - dull) * amounts[2] if changes[2] else 1.0,
        hue=round(settings.hue_delta * (2 * amounts[3] - 1)) if changes[3] else 0,
        contrast_last=bool(rng.random() < 0.5),
    )


def photometric(
    image: np.ndarray,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: int,
    contrast_last: bool,
) -> np.ndarray:
    """Change the colors as the steps of mmsegmentation's `PhotoMetricDistortion` do.

    Each step clips to 0 to 255 and drops the fraction, as in mmsegmentation 1.2. Saturation and
    hue share one conversion to HSV, so that values may differ by its rounding.

    Args:
        image: u8[H,W,3] RGB.
        brightness: is added to all values.
        contrast: factor of all values.
        saturation: factor of the saturation in HSV.
        hue: is added to the hue, in steps of 2 degrees.
        contrast_last: whether contrast is the last step instead of the second.

    Returns:
        u8[H,W,3].
    """
    values = _clipped(_BYTES + brightness)
    if not contrast_last:
        values = _clipped(values * contrast)
    if brightness or (contrast != 1 and not contrast_last):
        image = np.asarray(cv2.LUT(image, values.astype(np.uint8)))
    if saturation != 1 or hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hues, saturations = (_BYTES + hue) % 180, _clipped(_BYTES * saturation)
        for channel, table in enumerate((hues, saturations)):
            changed = cv2.LUT(cv2.extractChannel(hsv, channel), table.astype(np.uint8))
            cv2.insertChannel(changed, hsv, channel)
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    if contrast != 1 and contrast_last:
        image = np.asarray(cv2.LUT(image, _clipped(_BYTES * contrast).astype(np.uint8)))
    return image


def _clipped(values: np.ndarray) -> np.ndarray:
    """Clip to 0 to 255, and drop the fraction."""
    return np.floor(np.clip(values, 0, 255))
