"""Joint random transforms of an image and its mask.

The functions are pure: randomness is an argument, and no input is changed in place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import IGNORE_INDEX, Example


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random resize, crop, flip and color jitter, in this order, to exactly the crop's size.

    Use: `augment(example, rng) -> Example`.

    Attributes:
        crop_size: height and width of the result, in pixels.
        scale_range: range of the resize factor, drawn log-uniformly; (1.0, 1.0) keeps the size.
        flip: mirror left to right half of the time.
        brightness: 0 to 1; the image is multiplied by a factor from 1 - b to 1 + b.
        contrast: 0 to 1; scales the distance from the image's mean gray in the same way.
        saturation: 0 to 1; scales the distance from each pixel's own gray in the same way.
        fill: RGB, 0 to 255, of the padding of small images (masks are padded with
            `IGNORE_INDEX`).
    """

    crop_size: tuple[int, int]
    scale_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        """Raises `ConfigError` naming every value that is out of range."""
        scale = self.scale_range
        expected: dict[str, str] = {}
        if not _are_integers(self.crop_size, 2, 1, math.inf):
            expected["crop_size"] = "two whole numbers of pixels (height, width), 1 or more"
        if not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 16):
            expected["scale_range"] = "(low, high) with 0 < low <= high <= 16"
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                expected[name] = "0 (off) to 1"
        if not _are_integers(self.fill, 3, 0, 255):
            expected["fill"] = "three whole numbers from 0 to 255"
        if expected:
            problems = (f"{k} = {getattr(self, k)!r}: expected {v}" for k, v in expected.items())
            raise ConfigError(f"augmentation: {'; '.join(problems)}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Transform an example.

        Args:
            example: the decoded image and mask.
            rng: the source of all randomness. Every call draws the same number of values, so that
                switching one transform on does not change the others.

        Returns:
            An example of size `crop_size`, in new contiguous arrays.
        """
        return self.from_resized(lambda factor: resize(example, factor), rng)

    def from_resized(
        self, resized: Callable[[float], Example], rng: np.random.Generator
    ) -> Example:
        """Transform an example that is decoded only when its size is known.

        `lambda factor: resize(example, factor)` gives the same result as a call with `example`.

        Args:
            resized: factor -> the example, resized by it; see `resize`.
            rng: as in a call.

        Returns:
            An example of size `crop_size`, in new contiguous arrays.
        """
        scale, top, left, flip, *jitter = rng.random(7).tolist()
        low, high = self.scale_range
        example = resized(low * (high / low) ** scale)
        example = crop(example, self.crop_size, at=(top, left), fill=self.fill)
        if self.flip and flip < 0.5:
            example = flip_left_right(example)
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [
            1 + strength * (2 * draw - 1) for strength, draw in zip(strengths, jitter, strict=True)
        ]
        image = jitter_colors(example.image, *factors)
        return Example(example.id, np.ascontiguousarray(image), np.ascontiguousarray(example.mask))


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
        image: u8[H,W,3], or with both sides divided by `reduction`, rounded up.
        whole: H and W.
        factor: over 0.
        reduction: the factor by which the image is reduced already: each of its pixels is the mean
            of `reduction` x `reduction` pixels of the whole image, counted from the top left. At
            most 1 / factor.

    Returns:
        u8[max(1, round(H * factor)), max(1, round(W * factor)), 3].
    """
    height, width = size = _resized(whole, factor)
    if size == whole:
        return image
    # The last pixels of a reduced image may lie partly beyond the edge. So OpenCV gets the scale,
    # from which it computes the size; a surplus row or column is cut off.
    down, across = (to * reduction / side for to, side in zip(size, whole, strict=True))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(
        cv2.resize(image, None, fx=across, fy=down, interpolation=interpolation)[:height, :width]
    )


def resize_mask(mask: np.ndarray, factor: float) -> np.ndarray:
    """Scale a mask u8[H,W] as `resize` does."""
    height, width = size = _resized((mask.shape[0], mask.shape[1]), factor)
    if size == mask.shape:
        return mask
    # INTER_NEAREST takes the pixel at floor(x / factor), up to half a pixel off the image's grid;
    # INTER_NEAREST_EXACT has the image's pixel centers.
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))


def _resized(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def crop(
    example: Example,
    size: tuple[int, int],
    *,
    at: tuple[float, float],
    fill: tuple[int, int, int] = (0, 0, 0),
) -> Example:
    """Cut out a window, or place a smaller example into it.

    Args:
        example: of size H, W.
        size: height and width of the window, in pixels.
        at: top and left, each in [0, 1): the place of the window between its two extremes, or of a
            smaller example in the window.
        fill: RGB, 0 to 255, of the image's padding; the mask's padding is `IGNORE_INDEX`.

    Returns:
        An example of exactly `size`.
    """
    source, target = [], []
    for have, wanted, place in zip(example.mask.shape, size, at, strict=True):
        offset = int(place * (abs(have - wanted) + 1))
        start, pad = (offset, 0) if have >= wanted else (0, offset)
        length = min(have, wanted)
        source.append(slice(start, start + length))
        target.append(slice(pad, pad + length))
    image, mask = example.image[tuple(source)], example.mask[tuple(source)]
    if mask.shape != size:
        padded = np.full((*size, 3), fill, np.uint8), np.full(size, IGNORE_INDEX, np.uint8)
        padded[0][tuple(target)], padded[1][tuple(target)] = image, mask
        image, mask = padded
    return Example(example.id, image, mask)


def flip_left_right(example: Example) -> Example:
    """Mirror an image and its mask; twice is the identity."""
    # OpenCV copies in a twentieth of the time that NumPy takes to copy a mirrored view.
    name, image, mask = example
    return Example(name, np.asarray(cv2.flip(image, 1)), np.asarray(cv2.flip(mask, 1)))


def jitter_colors(
    image: np.ndarray, brightness: float, contrast: float, saturation: float
) -> np.ndarray:
    """Change an image's brightness, then contrast, then saturation, as torchvision defines them.

    Args:
        image: u8[H,W,3] RGB.
        brightness: factor of every value; 1 changes nothing.
        contrast: factor of the distance from the mean gray of the image.
        saturation: factor of the distance from each pixel's own gray.

    Returns:
        u8[H,W,3], clipped to 0 to 255.
    """
    if brightness == contrast == saturation == 1:
        return image
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


def _are_integers(values: Sequence[object], count: int, low: float, high: float) -> bool:
    return len(values) == count and all(
        isinstance(part, (int, np.integer)) and not isinstance(part, bool) and low <= part <= high
        for part in values
    )
