"""Settings that are "auto": decided from the data before the run.

Each decision is printed as the setting that it makes, with its reason. The decided settings are the
run's recipe: `config.json` records them, and a continued run, `eval` and `predict` use them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fcn_jax.config import AUTO, Config, parse
from fcn_jax.data.images.size import image_size
from fcn_jax.data.moments import channel_moments
from fcn_jax.data.source import Source
from fcn_jax.data.splits import Splits
from fcn_jax.plugins.api import Dataset
from fcn_jax.recipes import read_run
from fcn_jax.runtime.progress import Progress
from fcn_jax.train.sharding import batch_parts

STRIDE = 32
"""Crops are multiples of the largest stride of the usual backbones."""

LARGEST_CROP = 512
"""Largest side of a crop, in pixels. Images whose shorter side is over twice as long are shrunk."""

BATCH = 8
"""Images of a step in each part of a batch, which is one device without `mesh.spatial`."""

STEPS = 600
"""The least number of steps, if that takes 10 to 200 epochs."""

RARE = 0.1
"""A class is rare if it has less than this share of the pixels that an average class has."""

_CLASSES = "data.classes"
_MEAN, _STD = "model.mean", "model.std"

Values = Mapping[str, Any]
"""Settings by their dotted keys."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """The training split, as far as decisions depend on it.

    Attributes:
        sizes: i64[N,2], heights and widths of the images, in pixels.
        names: names of the classes.
        pixels: i64[K], pixels of each class.
        moments: means and standard deviations of the channels, f64[C] each; None if they are not
            measured. Then `model.mean` and `model.std` stay "auto".
    """

    sizes: np.ndarray
    names: tuple[str, ...]
    pixels: np.ndarray
    moments: tuple[np.ndarray, np.ndarray] | None = None


def undecided(config: Config) -> list[str]:
    """Return the dotted keys of the settings that are "auto", in the order of decisions."""
    table = config.model_dump(mode="json")
    keys = (_CLASSES, *_RULES, *(f"loss.{name}.class_weights" for name in table["loss"]))
    return [key for key in keys if _get(table, key) == AUTO]


def provisional(config: Config) -> Config:
    """Return a recipe with defaults for settings that are "auto", to check the others."""
    defaults = Config().model_dump(mode="json")
    values = {key: _get(defaults, key) for key in undecided(config)}
    for key, other in ((_MEAN, config.model.std), (_STD, config.model.mean)):
        if key in values and other not in (None, AUTO):  # one of them is given, and valid alone
            values[key] = other
    return _changed(config, values)


def as_recorded(config: Config, run: Path) -> Config:
    """Return a recipe with a run's own values for settings that are "auto".

    Args:
        config: the recipe.
        run: a run directory. If it records no settings yet, the recipe stays as it is.

    Raises:
        CheckpointError: the settings cannot be read.
    """
    keys = undecided(config)
    if not keys or not (run / "config.json").exists():
        return config
    recorded = read_run(run).model_dump(mode="json")
    return _changed(config, {key: _get(recorded, key) for key in keys})


def find_classes(config: Config, dataset: Dataset) -> tuple[Config, list[str]]:
    """Decide `data.classes`, before the dataset is opened.

    Returns:
        The recipe, and lines that say what was decided.

    Raises:
        DataError: the masks hold no classes; see `fcn_jax.data.datasets.found_classes`.
    """
    if config.data.classes != AUTO:
        return config, []
    lines, note = None, ""
    # Masks of several classes per pixel do not say which classes there are.
    if dataset.find_classes is not None and config.model.task != "multilabel":
        lines, note = dataset.find_classes(Path(config.data.root) if config.data.root else None)
    return _changed(config, {_CLASSES: lines}), [note] if note else []


def decide(config: Config, opened: Splits) -> tuple[Config, list[str]]:
    """Decide all settings that are "auto", except for `data.classes`.

    Args:
        config: the recipe.
        opened: the splits. Of the images, only headers are read, except for `model.mean` and
            `model.std`.

    Returns:
        The recipe without "auto", and a line for each decision.
    """
    if not set(undecided(config)) - {_CLASSES}:
        return config, []
    source = opened.sources[config.data.train_split]
    measured = {_MEAN, _STD} & set(undecided(config))
    moments = channel_moments(source) if measured else None
    facts = Facts(_sizes(source), source.classes.names, opened.class_pixels, moments)
    config, notes = decide_from(config, facts)
    if config.init.weights is None:
        notes.append(
            "initial weights are random; on photographs, --weights IMAGENET1K_V1 gives far better "
            "scores"
        )
    return config, notes


def decide_from(config: Config, facts: Facts) -> tuple[Config, list[str]]:
    """Decide as `decide` does, from facts about the training split."""
    notes = []
    for key in undecided(config):
        if key == _CLASSES:
            continue
        values, reason = decision(key, facts, config)
        if not values:
            continue
        config = _changed(config, values)
        shown = (f"{name} = {json.dumps(value)}" for name, value in values.items() if value)
        notes.append(f"{', '.join(shown) or f'{key} is not set'}: {reason}")
    return config, notes


def decision(key: str, facts: Facts, config: Config) -> tuple[Values, str]:
    """Return the settings that are decided if a setting is "auto", and the reason.

    Args:
        key: dotted key of the setting, except for `data.classes`.
        facts: the training split.
        config: the recipe with the decisions before it.
    """
    return _RULES.get(key, _class_weights)(key, facts, config)


# ------------------------------------------------------------------------------------------- rules


def _scale_range(key: str, facts: Facts, config: Config) -> tuple[Values, str]:
    if config.augment.resize is not None or config.augment.albumentations is not None:
        return {key: [1.0, 1.0]}, "the section augment has its own resize"
    short = float(np.median(facts.sizes.min(1)))
    if short <= 2 * LARGEST_CROP:
        return {key: [0.75, 1.33]}, "a random resize before the crop"
    factor = LARGEST_CROP / short
    return {key: [round(0.75 * factor, 3), round(1.33 * factor, 3)]}, (
        f"the shorter side of half of the images has {short:.0f} pixels or more, so they are shrunk"
    )


def _shrinking(config: Config) -> float:
    """The mean factor of the random resize if it always shrinks, otherwise 1."""
    low, high = config.data.scale_range
    return math.sqrt(low * high) if high < 1 else 1.0


def _crop_size(key: str, facts: Facts, config: Config) -> tuple[Values, str]:
    factor = _shrinking(config)
    # Nine of ten images have at least this height, and nine of ten this width.
    height, width = (int(np.quantile(sides, 0.1, method="lower")) for sides in facts.sizes.T)
    crop = [
        min(LARGEST_CROP, max(STRIDE, int(side * factor) // STRIDE * STRIDE))
        for side in (height, width)
    ]
    smallest = facts.sizes.min(0).tolist()
    if [height, width] != smallest:
        reason = f"nine of ten images have {height}x{width} pixels or more"
    elif (facts.sizes == smallest).all(1).any():
        reason = f"the smallest image is {height}x{width}"
    else:
        reason = f"no image is lower than {height} or narrower than {width} pixels"
    if factor < 1:
        reason += f", and images are shrunk to {factor:.2g} of their size"
    return {key: crop}, f"{reason}; a multiple of {STRIDE}, at most {LARGEST_CROP}"


def _batch_size(key: str, facts: Facts, config: Config) -> tuple[Values, str]:
    split = batch_parts(config.mesh)
    parts = split * config.optim.accumulate_steps
    wanted = min(len(facts.sizes), max(BATCH * split, parts))
    devices = f" on {jax.device_count()} devices" if jax.device_count() > 1 else ""
    return {key: max(parts, wanted // parts * parts)}, f"{len(facts.sizes)} images{devices}"


def _epochs(key: str, facts: Facts, config: Config) -> tuple[Values, str]:
    steps = max(1, len(facts.sizes) // config.data.batch_size)
    epochs = min(200, max(10, math.ceil(STEPS / steps)))
    return {key: epochs}, f"{epochs * steps} steps, {steps} in an epoch"


def _eval_every_epochs(key: str, facts: Facts, config: Config) -> tuple[Values, str]:
    every = max(1, config.train.epochs // 10)
    return {key: every}, f"{math.ceil(config.train.epochs / every)} evaluations"


def _scales(key: str, facts: Facts, config: Config) -> tuple[Values, str]:
    section, factor = config.eval, _shrinking(config)
    others = (section.protocol, section.size, section.window, section.crop)
    if factor == 1:
        return {key: None}, "whole images are scored at their own size"
    if any(other is not None for other in others):
        return {key: None}, "the recipe names another protocol"
    values: dict[str, Any] = {key: [round(factor, 3)]}
    if section.flip is None:
        values["eval.flip"] = False
    return values, "images are scored at the size that training shows"


def _moments(key: str, facts: Facts, config: Config) -> tuple[Values, str]:
    if facts.moments is None:
        return {}, ""
    values = facts.moments[key == _STD]
    reason = f"of all pixels of the {len(facts.sizes)} training images, in their own units"
    if key == _STD and not values.all():
        constant = ", ".join(map(str, np.flatnonzero(values == 0)))
        values = np.where(values == 0, 1.0, values)
        reason += f"; channels {constant} (from 0) have one value everywhere, so 1 is used"
    return {key: [float(f"{value:.6g}") for value in values]}, reason


def _class_weights(key: str, facts: Facts, config: Config) -> tuple[Values, str]:
    present = np.flatnonzero(facts.pixels)
    shares = facts.pixels / max(1, facts.pixels.sum())
    rarest = min(present, key=lambda label: shares[label], default=None)
    if rarest is None or shares[rarest] >= RARE / len(present):
        return {key: None}, "no class is rare"
    share = f"{shares[rarest]:.2%} of the pixels"
    return {key: "median_frequency"}, f"'{facts.names[rarest]}' has only {share}"


_RULES: Mapping[str, Callable[[str, Facts, Config], tuple[Values, str]]] = {
    _MEAN: _moments,
    _STD: _moments,
    "data.scale_range": _scale_range,
    "data.crop_size": _crop_size,
    "data.batch_size": _batch_size,
    "train.epochs": _epochs,
    "train.eval_every_epochs": _eval_every_epochs,
    "eval.scales": _scales,
}
"""By setting, its decision (key, facts, recipe with the decisions before) -> settings, reason."""


# ------------------------------------------------------------------------------------------ tables


def _sizes(source: Source) -> np.ndarray:
    """i64[N,2], heights and widths. Images whose header cannot be read are decoded."""
    found = []
    with Progress("reading image sizes", len(source)) as progress:
        for record in source:
            found.append(image_size(record.image) or source.decode(record).mask.shape[:2])
            progress.advance()
    return np.array(found, np.int64)


def _split(key: str) -> list[str]:
    """The parts of a dotted key. A loss's name may hold dots."""
    section, _, rest = key.partition(".")
    return [section, *rest.rsplit(".", 1)] if section == "loss" else [section, rest]


def _get(table: Mapping[str, Any], key: str) -> Any:
    value: Any = table
    for part in _split(key):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _changed(config: Config, values: Values) -> Config:
    """Return a recipe with other values, validated."""
    if not values:
        return config
    table = config.model_dump(mode="json")
    for key, value in values.items():
        *parents, last = _split(key)
        node = table
        for parent in parents:
            node = node[parent]
        node[last] = value
    return parse(table, "the settings decided from the data")
