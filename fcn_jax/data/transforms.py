"""Joint random transforms of an image and its mask, pure: randomness is an argument."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fcn_jax.config.augment import AugmentConfig
from fcn_jax.data.augment import class_crop
from fcn_jax.data.augment.albumentations_pipeline import Pipeline
from fcn_jax.data.augment.colors import jitter_colors, random_photometric
from fcn_jax.data.augment.effects import blur, jpeg, random_cutout
from fcn_jax.data.augment.rotation import rotated_crop
from fcn_jax.data.geometry import crop, flip_left_right, flip_top_bottom, resize, window_of
from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import Example

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
        return resize(example, side / min(example.mask.shape[:2]))

    def _cropped(self, example: Example, at: tuple[float, float], random: _Random) -> Example:
        size, fill = self.crop_size, self._fill(example)
        if (settings := self.tables.crop) is not None:

            def window(at: tuple[float, float]) -> np.ndarray:
                return example.mask[window_of(example, size, at)[0]]

            at = class_crop.choose(window, at, settings, random("crop"))
        turn = self.tables.rotate
        if turn is None or (rng := random("rotate")).random() >= turn.probability:
            return crop(example, size, at=at, fill=fill)
        source, target = window_of(example, size, at)
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


def _are_integers(values: Sequence[object], count: int, low: float, high: float) -> bool:
    return len(values) == count and all(
        isinstance(part, (int, np.integer)) and not isinstance(part, bool) and low <= part <= high
        for part in values
    )
