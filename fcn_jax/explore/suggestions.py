"""Settings that fit a dataset."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fcn_jax.config import Config
from fcn_jax.explore.contents import Contents
from fcn_jax.plugins.api import IGNORE_INDEX
from fcn_jax.runtime import json_text
from fcn_jax.train import auto


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
    found = list(_labels(config, training))
    if (facts := _facts(training)) and not auto.undecided(config):
        found += [*_class_weights(config, facts), *_crop(config, facts)]
        found += _batch(config, training)
    return [*found, *_damaged(config, training)]


def decided_settings(config: Config, training: Contents) -> tuple[Config, list[str]]:
    """Decide settings that are "auto" as training does, and say what was decided.

    Without a readable image, they stay as they are.
    """
    return auto.decide_from(config, facts) if (facts := _facts(training)) else (config, [])


def _facts(training: Contents) -> auto.Facts | None:
    sizes = training.sizes[training.decoded].astype(np.int64)
    names, pixels = training.source.classes.names, training.class_pixels[:-1]
    return auto.Facts(sizes, names, pixels) if len(sizes) else None


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


def _class_weights(config: Config, facts: auto.Facts) -> Iterator[Suggestion]:
    losses = {name.rpartition(":")[2]: loss for name, loss in config.losses().items()}
    loss = losses.get("cross_entropy")
    weighted = loss is None or loss.get("class_weights") is not None
    if not weighted and config.model.task != "multilabel":
        key = "loss.cross_entropy.class_weights"
        values, reason = auto.decision(key, facts, config)
        if values[key] is not None:
            yield Suggestion(key, values[key], reason)


def _crop(config: Config, facts: auto.Facts) -> Iterator[Suggestion]:
    sizes, now = facts.sizes, config.data.crop_size
    (fitting,) = auto.decision("data.crop_size", facts, config)[0].values()
    smaller = (sizes < now).any(axis=1).mean()
    seen = np.median(np.minimum(sizes, now).prod(axis=1) / sizes.prod(axis=1))
    if smaller > 0.5:
        reason = f"{smaller:.0%} of the images are smaller than {now[0]}x{now[1]} and are padded"
    elif seen < 0.1 and np.prod(fitting) > np.prod(now):
        reason = f"a crop of {now[0]}x{now[1]} shows {seen:.0%} of an image (median)"
    else:
        return
    if tuple(fitting) != tuple(now):
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
