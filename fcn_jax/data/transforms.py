"""Joint random transforms of an image and its mask.

They are pure: the randomness is an argument, and no input is changed in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import IGNORE_INDEX, Example


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random resize, crop, flip and color jitter, in this order, to exactly the crop's size.

    Use: `augment(example, rng) -> Example`.

    Attributes:
        crop: height and width of the result, in pixels.
        scale: range of the resize factor, drawn log-uniformly; (1.0, 1.0) keeps the size.
        flip: mirror left to right half of the time.
        brightness: 0 to 1; the image is multiplied by a factor from 1 - b to 1 + b.
        contrast: 0 to 1; in the same way the distance from the image's mean gray.
        saturation: 0 to 1; in the same way the distance from each pixel's gray.
        fill: RGB, 0 to 255, of what a small image is padded with (the mask is padded with
            `IGNORE_INDEX`).
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        """Raises `ConfigError` naming every value that is out of range."""
        problems = []
        if len(self.crop) != 2 or not all(_is_integer(side) and side >= 1 for side in self.crop):
            problems.append(
                f"crop = {self.crop!r}: want two whole numbers of pixels (height, width), 1 or more"
            )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 16:
            problems.append(f"scale = {self.scale!r}: want (low, high) with 0 < low <= high <= 16")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name} = {getattr(self, name)!r}: want 0 (off) to 1")
        if len(self.fill) != 3 or not all(
            _is_integer(value) and 0 <= value <= 255 for value in self.fill
        ):
            problems.append(f"fill = {self.fill!r}: want three whole numbers from 0 to 255")
        if problems:
            raise ConfigError(f"augmentation: {'; '.join(problems)}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Transform an example.

        Args:
            example: the decoded image and mask.
            rng: source of all the randomness. Every call draws the same number of values, whatever
                is switched off, so that switching one transform on does not change what the others
                do.

        Returns:
            An example of size `crop`, of new contiguous arrays.
        """
        return self.from_resized(lambda factor: resize(example, factor), rng)

    def from_resized(
        self, resized: Callable[[float], Example], rng: np.random.Generator
    ) -> Example:
        """Transform an example that is decoded once it is known how large it is to be.

        Args:
            resized: factor -> the example, resized by it; see `resize`.
            rng: as in a call, which gives the same for `lambda factor: resize(example, factor)`.

        Returns:
            As a call.
        """
        scale, top, left, flip, *jitter = rng.random(7).tolist()
        low, high = self.scale
        example = resized(low * (high / low) ** scale)
        example = crop(example, self.crop, at=(top, left), fill=self.fill)
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
    whole = (example.mask.shape[0], example.mask.shape[1])
    return Example(
        example.id, resize_image(example.image, whole, factor), resize_mask(example.mask, factor)
    )


def resize_image(
    image: np.ndarray, whole: tuple[int, int], factor: float, *, reduction: int = 1
) -> np.ndarray:
    """Scale an image as `resize` does.

    Args:
        image: u8[H,W,3]; or where it is reduced, with both sides divided by `reduction` and rounded
            up.
        whole: H and W.
        factor: over 0.
        reduction: how many times smaller than the whole the image already is: each of its pixels is
            the mean of `reduction` x `reduction` of the whole's, counted from the top left. At most
            1 / factor.

    Returns:
        u8[max(1, round(H * factor)), max(1, round(W * factor)), 3].
    """
    height, width = size = _resized(whole, factor)
    if size == whole:
        return image
    # The last pixels of a reduced image may lie beyond the edge in part. So OpenCV is given the
    # scale, from which it takes the size; a row or column that is one too many is cut off.
    down, across = (want * reduction / side for want, side in zip(size, whole, strict=True))
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
    # the exact form has the same centers.
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
    """Cut a window out, or place an example that is smaller than it into it.

    Args:
        example: of size H, W.
        size: height and width of the window, in pixels.
        at: top and left, each in [0, 1): where the window lies between the two extremes. Where the
            example is the smaller, where it lies in the window.
        fill: RGB, 0 to 255, of the padding; the mask's is `IGNORE_INDEX`.

    Returns:
        An example of exactly `size`.
    """
    # One rule for both signs: the window starts at a whole offset between 0 and H - h, which is
    # negative where there is padding.
    offsets = [
        _offset(have - want, where)
        for have, want, where in zip(example.mask.shape, size, at, strict=True)
    ]
    source = tuple(
        slice(max(0, o), max(0, o) + min(h, w))
        for o, h, w in zip(offsets, example.mask.shape, size, strict=True)
    )
    target = tuple(
        slice(max(0, -o), max(0, -o) + min(h, w))
        for o, h, w in zip(offsets, example.mask.shape, size, strict=True)
    )
    image, mask = example.image[source], example.mask[source]
    if mask.shape != size:
        padded_image, padded_mask = (
            np.empty((*size, 3), np.uint8),
            np.full(size, IGNORE_INDEX, np.uint8),
        )
        padded_image[:] = np.array(fill, np.uint8)
        padded_image[target], padded_mask[target] = image, mask
        image, mask = padded_image, padded_mask
    return Example(example.id, image, mask)


def flip_left_right(example: Example) -> Example:
    """Mirror an image and its mask; twice is the identity."""
    # Copied by OpenCV, in a twentieth of the time that NumPy takes to copy a mirrored view.
    return Example(
        example.id, np.asarray(cv2.flip(example.image, 1)), np.asarray(cv2.flip(example.mask, 1))
    )


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
    # OpenCV's sums are exact, as NumPy's are, which take a hundred times as long.
    gray_mean = float(np.array(cv2.sumElems(image)[:3]) / (image.size // 3) @ gray_weights)
    # The three are affine in the color, so that one matrix and one offset do them in a single pass:
    # x -> S (c b x + (1 - c) b m), where S = s I + (1 - s) 1 w^T leaves grays, and with them the
    # offset, as they are.
    matrix = (
        (saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), gray_weights))
        * contrast
        * brightness
    )
    offset = np.full((3, 1), (1 - contrast) * brightness * gray_mean)
    return np.asarray(cv2.transform(image, np.hstack([matrix, offset])), np.uint8)


def _offset(room: int, where: float) -> int:
    span = int(where * (abs(room) + 1))
    return span if room >= 0 else -span


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
