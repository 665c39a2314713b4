"""Evaluation protocols: which pixels a model sees when it is scored or predicts.

Scores of one model under two protocols differ, so each has a name, and results record it with its
settings (`Protocol.to_dict`). See docs/evaluation.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import cv2
import numpy as np

from fcn_jax.config import Config
from fcn_jax.data.augment.channels import in_groups
from fcn_jax.data.geometry import crop
from fcn_jax.errors import ConfigError, did_you_mean
from fcn_jax.plugins.api import IGNORE_INDEX, Example

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Base of the protocols. Their constructors raise `ConfigError` that names every bad value.

    Attributes:
        name: the name in settings and results.
        many_sizes: whether the network sees as many sizes as the images have.
        by_image: whether each image is scored without regard to the others.
    """

    name: ClassVar[str]
    many_sizes: ClassVar[bool] = False
    by_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        if problems := [f"{key} is {_shown(getattr(self, key))}: {p}" for key, p in self._faults()]:
            raise ConfigError(f"protocol {self.name}: {'; '.join(problems)}")

    def _faults(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each bad setting, and what is expected."""
        yield from ()

    def to_dict(self) -> dict[str, Any]:
        """Name and settings, JSON-able."""
        values = dataclasses.asdict(self)
        listed = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {"name": self.name, **listed}

    def __str__(self) -> str:
        """Such as "sliding (window 512x512, overlap 0.5, blend gaussian)"."""
        settings = [f"{k} {_shown(v)}" for k, v in dataclasses.asdict(self).items()]
        return f"{self.name} ({', '.join(settings)})" if settings else self.name

    def examples(self, found: Iterable[Example]) -> Iterator[Example]:
        """Yield the images that are scored, with the ground truth that they are compared with."""
        yield from found

    def for_prediction(self) -> Protocol:
        """The protocol that predicts whole images of a folder as this one scores them."""
        return self


@dataclasses.dataclass(frozen=True)
class Native(Protocol):
    """Each image whole, once, at its own size."""

    name = "native"
    many_sizes = True


@dataclasses.dataclass(frozen=True)
class Resize(Protocol):
    """Each image resized to one size.

    Attributes:
        size: height and width that the network sees, in pixels.
        labels: "native" resizes the logits back bilinearly and scores all pixels of the ground
            truth; "resized" resizes the ground truth to `size`, by the nearest pixel.
    """

    name = "resize"
    size: Size
    labels: str = "native"

    def _faults(self) -> Iterator[tuple[str, str]]:
        yield from _size_faults(self, "size")
        yield from _choice_faults(self, "labels", ("native", "resized"))

    def examples(self, found: Iterable[Example]) -> Iterator[Example]:
        """Yield examples whose masks have the size of the prediction."""
        if self.labels == "native":
            yield from found
            return
        width_first = self.size[::-1]
        for name, image, mask in found:
            small = cv2.resize(mask, width_first, interpolation=cv2.INTER_NEAREST_EXACT)
            yield Example(name, resized(image, self.size), np.asarray(small))

    def for_prediction(self) -> Protocol:
        """The same, with masks of the images' own sizes."""
        return dataclasses.replace(self, labels="native")


@dataclasses.dataclass(frozen=True)
class Sliding(Protocol):
    """Overlapping windows, blended. The memory does not grow with the image's longer side.

    Windows start every round(side * (1 - overlap)) pixels; the last ones are shifted inward to end
    at the border. An image smaller than a window is padded at the bottom and right with copies of
    its last row and column.

    Attributes:
        window: height and width, in pixels.
        overlap: share of a window that its neighbor covers, at least 0, below 1.
        blend: weight of a window's pixels: "uniform", or "gaussian" around the window's center with
            a standard deviation of 1/8 of its sides, at least 0.001, as in MONAI and nnU-Net.
        average: average the "probabilities" (softmax) of the windows, or their "logits".
        flip: run each window mirrored left to right, too.
    """

    name = "sliding"
    window: Size
    overlap: float = 0.5
    blend: str = "gaussian"
    average: str = "probabilities"
    flip: bool = False

    def _faults(self) -> Iterator[tuple[str, str]]:
        yield from _size_faults(self, "window")
        if not 0 <= self.overlap < 1:
            yield "overlap", "expected at least 0 and below 1 (0.5: windows overlap by half)"
        yield from _choice_faults(self, "blend", ("gaussian", "uniform"))
        yield from _choice_faults(self, "average", ("probabilities", "logits"))


@dataclasses.dataclass(frozen=True)
class Multiscale(Protocol):
    """Several sizes of each image, and mirrored ones; probabilities are averaged at its own size.

    As in mmsegmentation's test-time augmentation: the logits of each view are resized bilinearly
    to the image's size, and their softmax is averaged. The defaults are mmsegmentation's.

    Attributes:
        scales: factors of the image's sides, above 0, at most 8.
        flip: run each size mirrored left to right, too.
    """

    name = "multiscale"
    many_sizes = True
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    flip: bool = True

    def _faults(self) -> Iterator[tuple[str, str]]:
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            yield "scales", "expected one or more numbers above 0, at most 8"


@dataclasses.dataclass(frozen=True)
class D2L(Protocol):
    """Random crops, as in the chapter on fully convolutional networks of Dive into Deep Learning.

    Its accuracy is the pixel accuracy of one random crop of each image that is large enough, the
    void border counts as background (label 0), and the images that do not fill the last batch are
    left out. Here the crop of an image depends only on the seed and the image's position.

    Attributes:
        crop: height and width, in pixels.
        drop_last: the batch of the chapter; images that do not fill one are left out. 1 keeps all.
        seed: seed of the crops, 0 to 2**32 - 1.
    """

    name = "d2l"
    by_image = False
    crop: Size = (320, 480)
    drop_last: int = 32
    seed: int = 0

    def _faults(self) -> Iterator[tuple[str, str]]:
        yield from _size_faults(self, "crop")
        if self.drop_last < 1:
            yield "drop_last", "expected 1 or more images"
        if not 0 <= self.seed < 2**32:
            yield "seed", f"expected 0 to {2**32 - 1}"

    def examples(self, found: Iterable[Example]) -> Iterator[Example]:
        """Yield the crops of whole batches."""
        batch: list[Example] = []
        for index, example in enumerate(found):
            sides = example.mask.shape
            if any(side < length for side, length in zip(sides, self.crop, strict=True)):
                continue
            top, left = np.random.default_rng((self.seed, index)).random(2).tolist()
            name, image, mask = crop(example, self.crop, at=(top, left))
            batch.append(Example(name, image, np.where(mask == IGNORE_INDEX, 0, mask)))
            if len(batch) == self.drop_last:
                yield from batch
                batch.clear()

    def for_prediction(self) -> Protocol:
        """Whole images: a crop is for scores only."""
        return Native()


PROTOCOLS: dict[str, type[Protocol]] = {
    kind.name: kind for kind in (Native, Resize, Multiscale, Sliding, D2L)
}


def make(name: str | None = None, settings: Mapping[str, Any] | None = None) -> Protocol:
    """Build a protocol.

    Args:
        name: in `PROTOCOLS`; if None, the first one that has all of the settings: "native" without
            any.
        settings: its attributes.

    Raises:
        ConfigError: the name or a setting is unknown, missing or out of range.
    """
    settings = dict(settings or {})
    name = name or _implied(settings)
    if name not in PROTOCOLS:
        raise ConfigError(f"no evaluation protocol '{name}'. {did_you_mean(name, PROTOCOLS)}")
    kind = PROTOCOLS[name]
    known = _names(kind)
    if foreign := [key for key in settings if key not in known]:
        owners = (
            f"'{key}', which belongs to {' and '.join(_owners(key)) or 'none'}" for key in foreign
        )
        raise ConfigError(f"protocol {name} has no setting {', '.join(owners)}")
    required = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    if missing := sorted(required - settings.keys()):
        raise ConfigError(f"protocol {name}: {', '.join(missing)} is missing, such as 512x512")
    return kind(**settings)


def choose(
    protocol: Protocol | str | None = None,
    settings: Mapping[str, Any] | None = None,
    recipe: Config | None = None,
) -> Protocol:
    """Choose a protocol: that of a run, changed by the settings that are given.

    Args:
        protocol: the protocol or its name; the recipe's if None and the recipe's has the settings.
        settings: attributes of the protocol; the others are the recipe's if it names the same one.
        recipe: the run's settings; None for a checkpoint without a run. Its training crop is the
            default of a sliding window.

    Raises:
        ConfigError: see `make`.
    """
    settings = dict(settings or {})
    if isinstance(protocol, Protocol):
        if settings:
            raise ConfigError("give the settings to the protocol's constructor, or name a protocol")
        return protocol
    if recipe is None:
        return make(protocol, settings)
    section, crop_size = recipe.eval, recipe.data.crop_size
    own = {key: value for key in SETTING_NAMES if (value := getattr(section, key)) is not None}
    base = _make(section.protocol, own, crop_size)
    if protocol == base.name or (protocol is None and settings.keys() <= _names(type(base))):
        return dataclasses.replace(base, **settings)
    return _make(protocol, settings, crop_size)


def _make(name: str | None, settings: dict[str, Any], crop_size: Size) -> Protocol:
    name = name or _implied(settings)
    if name == Sliding.name:
        settings = {"window": crop_size, **settings}
    return make(name, settings)


def _implied(settings: Mapping[str, Any]) -> str:
    for kind in PROTOCOLS.values():
        if settings.keys() <= _names(kind):
            return kind.name
    owners = (f"{key} of {' or '.join(_owners(key)) or 'none'}" for key in settings)
    raise ConfigError(f"no evaluation protocol has all of these settings: {', '.join(owners)}")


def resized(image: np.ndarray, size: Size) -> np.ndarray:
    """Resize [H,W,C] to `size`: by area if both sides shrink, otherwise bilinearly."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    shrinks = size[0] <= height and size[1] <= width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return in_groups(
        lambda group, _: np.asarray(cv2.resize(group, size[::-1], interpolation=interpolation)),
        image,
    )


def _names(kind: type[Protocol]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


SETTING_NAMES = tuple(sorted(set().union(*map(_names, PROTOCOLS.values()))))


def _owners(key: str) -> list[str]:
    return [kind.name for kind in PROTOCOLS.values() if key in _names(kind)]


def _size_faults(protocol: Protocol, key: str) -> Iterator[tuple[str, str]]:
    value = getattr(protocol, key)
    if len(value) != 2 or not all(isinstance(side, int) and side >= 1 for side in value):
        yield key, "expected height and width, each at least 1 pixel"


def _choice_faults(protocol: Protocol, key: str, known: tuple[str, ...]) -> Iterator[Any]:
    value = getattr(protocol, key)
    if value not in known:
        yield key, did_you_mean(str(value), known).removesuffix(".")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        separator = "x" if all(isinstance(part, int) for part in value) else ","
        return separator.join(f"{part:g}" for part in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
