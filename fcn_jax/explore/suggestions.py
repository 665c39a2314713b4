"""Settings that fit a dataset."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fcn_jax.config import Config
from fcn_jax.explore.contents import Contents
from fcn_jax.plugins.api import IGNORE_INDEX
from fcn_jax.runtime import json_text

SKEWED = 50
"""Ratio of the pixels of two classes from which class weights are suggested."""

LARGEST_CROP = 512
"""Longest side of a suggested crop, in pixels."""


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A setting.

    Attributes:
        key: its name, such as "data.crop_size".
        value: its value.
        reason: one sentence.
    """

    key: str
    value: Any
    reason: str

    @property
    def option(self) -> str:
        """The command-line option that sets it."""
        value = self.value if isinstance(self.value, str) else json_text.dumps(self.value)
        if isinstance(self.value, Mapping):
            value = f"{{{', '.join(f'{old} = {new}' for old, new in self.value.items())}}}"
        return f"--set {shlex.quote(f'{self.key}={value}')}"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return {**dataclasses.asdict(self), "option": self.option}


def suggest(config: Config, training: Contents) -> list[Suggestion]:
    """Suggest settings for a training split.

    Args:
        config: the present settings.
        training: the contents of the split.
    """
    return [
        *_labels(config, training),
        *_class_weights(config, training),
        *_crop(config, training),
        *_batch(config, training),
        *_damaged(config, training),
    ]


def crop_size(sizes: np.ndarray) -> tuple[int, int]:
    """A crop for images of these sizes.

    Each side is the one that three of four images reach, at most `LARGEST_CROP`, rounded down to a
    multiple of 32, the stride of the backbones.

    Args:
        sizes: i32[N,2], height and width of the images, N at least 1.

    Returns:
        Height and width, 32 or more.
    """
    height, width = (
        max(32, min(LARGEST_CROP, int(side)) // 32 * 32)
        for side in np.quantile(sizes, 0.25, axis=0, method="lower")
    )
    return height, width


def _labels(config: Config, training: Contents) -> Iterator[Suggestion]:
    """Settings for masks whose values are not 0 to K-1, if their meaning is hardly in doubt."""
    labels, count = training.source.labels, len(training.source.classes)
    plain = {value: value for value in range(count)} | {IGNORE_INDEX: IGNORE_INDEX}
    if labels is None or labels.colors is not None or dict(labels.values) != plain:
        return
    if any(mask.found.kind == "rgb" for mask in training.masks):
        return
    values = {value for mask in training.masks for value in mask.found.counts}
    if count == 2 and values == {0, IGNORE_INDEX}:
        name = training.source.classes.names[1]
        reason = f"the masks hold 0 and 255, and 255 would be ignored instead of '{name}'"
        yield Suggestion("data.label_map", {"255": 1}, reason)
    elif values - {IGNORE_INDEX} == set(range(1, count + 1)):
        reason = f"the masks count their {count} classes from 1"
        yield Suggestion("data.reduce_zero_label", True, reason)


def _class_weights(config: Config, training: Contents) -> Iterator[Suggestion]:
    pixels = training.class_pixels[:-1]
    present = np.flatnonzero(pixels)
    losses = {name.rpartition(":")[2]: loss for name, loss in config.losses().items()}
    loss = losses.get("cross_entropy")
    if len(present) < 2 or loss is None or loss.get("class_weights") is not None:
        return
    rare, common = present[pixels[present].argmin()], present[pixels[present].argmax()]
    if pixels[common] < SKEWED * pixels[rare]:
        return
    names, shares = training.source.classes.names, 100 * pixels / pixels.sum()
    yield Suggestion(
        "loss.cross_entropy.class_weights",
        "median_frequency",
        f"{shares[common]:.2g}% of the labeled pixels are '{names[common]}' and "
        f"{shares[rare]:.2g}% '{names[rare]}'; the loss then gives rare classes larger weights",
    )


def _crop(config: Config, training: Contents) -> Iterator[Suggestion]:
    sizes = training.sizes[training.decoded]
    if not len(sizes):
        return
    fitting, now = crop_size(sizes), config.data.crop_size
    smaller = (sizes < now).any(axis=1).mean()
    seen = np.minimum(sizes, now).prod(axis=1) / sizes.prod(axis=1)
    if smaller > 0.5:
        reason = f"{smaller:.0%} of the images are smaller than {_by(now)} and would be padded"
    elif np.median(seen) < 0.1 and fitting[0] * fitting[1] > now[0] * now[1]:
        reason = f"a crop of {_by(now)} shows {np.median(seen):.0%} of an image (median)"
    else:
        return
    if fitting != tuple(now):
        yield Suggestion("data.crop_size", list(fitting), reason)


def _batch(config: Config, training: Contents) -> Iterator[Suggestion]:
    count = len(training.source)
    if count < config.data.batch_size:
        yield Suggestion(
            "data.batch_size",
            count,
            f"the split has {count} images, fewer than a batch of {config.data.batch_size}",
        )


def _damaged(config: Config, training: Contents) -> Iterator[Suggestion]:
    if training.failures["damaged"].count and config.data.damaged == "refuse":
        yield Suggestion(
            "data.damaged", "skip", "training then leaves damaged files out, instead of ending"
        )


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
