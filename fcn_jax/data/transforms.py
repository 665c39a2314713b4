"""Joint random transforms of an image and its mask.

The functions are pure: randomness is an argument, and no input is changed in place.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from fcn_jax.config.augment import AugmentConfig
from fcn_jax.data.augment import class_crop
from fcn_jax.data.augment.albumentations_pipeline import Pipeline
from fcn_jax.data.augment.channels import in_groups
from fcn_jax.data.augment.colors import jitter_colors, random_photometric
from fcn_jax.data.augment.effects import blur, jpeg, random_cutout
from fcn_jax.data.augment.rotation import rotated_crop
from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import IGNORE_INDEX, Example

if TYPE_CHECKING:
    from fcn_jax.config import DataConfig

_Random = Callable[[str], np.random.Generator]
"""Name of a transform -> its random numbers."""

_STREAMS = (
    "resize",
    "rotate",
    "crop",
    "vertical_flip",
    "photometric",
    "blur",
    "jpeg",
    "cutout",
    "hue",
)
"""Transforms with random numbers of their own. A new one is added at the end, so that it does not
change the others."""


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random transforms of an image and its mask, to exactly the crop's size.

    The order is: resize, rotate and crop, flip left to right, flip top to bottom, color jitter,
    photometric distortion, blur, JPEG, cutout. A pipeline of Albumentations replaces all of them
    except the crop, which follows it.

    Use: `augment(example, rng) -> Example`.

    Attributes:
        crop_size: height and width of the result, in pixels.
        scale_range: range of the resize factor, drawn log-uniformly; (1.0, 1.0) keeps the size.
        flip: mirror left to right half of the time.
        brightness: 0 to 1; the image is multiplied by a factor from 1 - b to 1 + b.
        contrast: 0 to 1; scales the distance from the image's mean gray in the same way.
        saturation: 0 to 1; scales the distance from each pixel's own gray in the same way.
        hue: 0 to 0.5; turns the color circle by -h to h.
        fill: RGB, 0 to 255, of the padding of small images (masks are padded with
            `IGNORE_INDEX`). Images of other channel counts are padded with its first value.
        tables: the other transforms.
    """

    crop_size: tuple[int, int]
    scale_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    fill: tuple[int, int, int] = (0, 0, 0)
    tables: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)

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
        if not 0 <= self.hue <= 0.5:
            expected["hue"] = "0 (off) to 0.5"
        if not _are_integers(self.fill, 3, 0, 255):
            expected["fill"] = "three whole numbers from 0 to 255"
        if expected:
            problems = (f"{k} = {getattr(self, k)!r}: expected {v}" for k, v in expected.items())
            raise ConfigError(f"augmentation: {'; '.join(problems)}")
        _ = self._pipeline  # raises its errors

    @classmethod
    def of(cls, data: DataConfig, tables: AugmentConfig) -> Augment:
        """Return the transforms of the sections `data` and `augment` of a recipe.

        Raises:
            ConfigError: Albumentations is not installed, or does not read its pipeline.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**data.model_dump(include=names), tables=tables)

    @functools.cached_property
    def _pipeline(self) -> Pipeline | None:
        table = self.tables.albumentations
        return None if table is None else Pipeline(table)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Transform an example.

        Args:
            example: the decoded image and mask.
            rng: the source of all randomness. Switching one transform on does not change the random
                numbers of the others.

        Returns:
            An example of size `crop_size`, in new contiguous arrays.

        Raises:
            ConfigError: a transform needs an image of other channels or another dtype.
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

        Raises:
            ConfigError: as for a call.
        """
        scale, top, left, flip, *jitter = rng.random(7).tolist()
        seeds = dict(zip(_STREAMS, rng.integers(2**63, size=len(_STREAMS)).tolist(), strict=True))

        def random(name: str) -> np.random.Generator:
            return np.random.default_rng(seeds[name])

        if self._pipeline is not None:
            seed = int(rng.integers(2**32))
            example = self._pipeline(resized(1.0), seed)
            example = self._cropped(example, (top, left), random)
        else:
            example = self._resized(resized, scale, random)
            example = self._cropped(example, (top, left), random)
            example = self._flipped(example, flip, random)
            example = self._recolored(example, jitter, random)
        name, image, mask = example
        return Example(name, np.ascontiguousarray(image), np.ascontiguousarray(mask))

    def _resized(
        self, resized: Callable[[float], Example], scale: float, random: _Random
    ) -> Example:
        if self.tables.resize is None:
            low, high = self.scale_range
            return resized(low * (high / low) ** scale)
        shortest, longest = self.tables.resize.shorter_side
        side = int(random("resize").integers(shortest, longest, endpoint=True))
        example = resized(1.0)
        return resize(example, side / min(example.mask.shape))

    def _cropped(self, example: Example, at: tuple[float, float], random: _Random) -> Example:
        size, fill = self.crop_size, self._fill(example)
        if (settings := self.tables.crop) is not None:

            def window(at: tuple[float, float]) -> np.ndarray:
                return example.mask[_window(example, size, at)[0]]

            at = class_crop.choose(window, at, settings, random("crop"))
        turn = self.tables.rotate
        if turn is None or (rng := random("rotate")).random() >= turn.probability:
            return crop(example, size, at=at, fill=fill)
        source, target = _window(example, size, at)
        image, mask = rotated_crop(
            example.image,
            example.mask,
            size,
            origin=(source[0].start - target[0].start, source[1].start - target[1].start),
            degrees=float(rng.uniform(-turn.degrees, turn.degrees)),
            fill=fill,
        )
        return Example(example.id, image, mask)

    def _flipped(self, example: Example, flip: float, random: _Random) -> Example:
        if self.flip and flip < 0.5:
            example = flip_left_right(example)
        vertical = self.tables.vertical_flip
        if vertical is not None and random("vertical_flip").random() < vertical.probability:
            example = flip_top_bottom(example)
        return example

    def _recolored(self, example: Example, jitter: list[float], random: _Random) -> Example:
        self._require_channels(example)
        name, image, mask = example
        tables = self.tables
        strengths = (self.brightness, self.contrast, self.saturation)
        brightness, contrast, saturation = (
            1 + strength * (2 * draw - 1) for strength, draw in zip(strengths, jitter, strict=True)
        )
        hue = float(random("hue").uniform(-self.hue, self.hue)) if self.hue else 0.0
        image = jitter_colors(image, brightness, contrast, saturation, hue)
        if tables.photometric is not None:
            image = random_photometric(image, tables.photometric, random("photometric"))
        if tables.blur is not None:
            rng = random("blur")
            if rng.random() < tables.blur.probability:
                image = blur(image, float(rng.uniform(*tables.blur.sigma)))
        if tables.jpeg is not None:
            rng = random("jpeg")
            if rng.random() < tables.jpeg.probability:
                image = jpeg(image, int(rng.integers(*tables.jpeg.quality, endpoint=True)))
        if tables.cutout is not None:
            rng = random("cutout")
            if rng.random() < tables.cutout.probability:
                fill = self._fill(example)
                image, mask = random_cutout(image, mask, tables.cutout, rng, fill)
        return Example(name, image, mask)

    def _fill(self, example: Example) -> float | tuple[float, ...]:
        # NumPy fills with one value in a tenth of the time of three.
        is_gray = len(set(self.fill)) == 1
        return self.fill[0] if is_gray or example.image.shape[2] != 3 else self.fill

    def _require_channels(self, example: Example) -> None:
        """Raise `ConfigError` for transforms that the channels or the dtype do not allow."""
        channels, dtype = example.image.shape[2], example.image.dtype
        self.require_channels(channels, dtype, f"'{example.id}' has {channels} channels of {dtype}")

    def require_channels(self, channels: int, dtype: npt.DTypeLike, reason: str) -> None:
        """Raise `ConfigError` for transforms that images do not allow.

        Args:
            channels: of the images.
            dtype: of the images.
            reason: the images in the error, such as "model.in_channels is 4".
        """
        if channels == 3 and dtype == np.uint8:
            return
        names = ("brightness", "contrast", "saturation", "hue")
        given = [f"data.{name}" for name in names if getattr(self, name)]
        if self.tables.photometric is not None:
            given.append("augment.photometric")
        if self.tables.jpeg is not None and not (channels == 1 and dtype == np.uint8):
            given.append("augment.jpeg")
        if given:
            raise ConfigError(
                f"{', '.join(given)}: only for RGB images of 8 bits, and {reason}; leave out these "
                "settings"
            )


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
    source, target = _window(example, size, at)
    image, mask = example.image[source], example.mask[source]
    if mask.shape != size:
        padded = (
            np.full((*size, image.shape[2]), fill, image.dtype),
            np.full(size, IGNORE_INDEX, np.uint8),
        )
        padded[0][target], padded[1][target] = image, mask
        image, mask = padded
    return Example(example.id, image, mask)


_Slices = tuple[slice, slice]


def _window(
    example: Example, size: tuple[int, int], at: tuple[float, float]
) -> tuple[_Slices, _Slices]:
    """The part of an example that a crop shows, and its place in the crop."""
    source, target = [], []
    for have, wanted, place in zip(example.mask.shape, size, at, strict=True):
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
    return Example(name, flipped, np.asarray(cv2.flip(mask, axis)))


def _are_integers(values: Sequence[object], count: int, low: float, high: float) -> bool:
    return len(values) == count and all(
        isinstance(part, (int, np.integer)) and not isinstance(part, bool) and low <= part <= high
        for part in values
    )
