"""The check of a dataset: every pair of every split is read, and all problems are reported."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.config import Config
from fcn_jax.data import mask_checks, overlap
from fcn_jax.data.inspection import reading_notes, split_notes
from fcn_jax.data.labels.label_map import LabelMap, as_label_map
from fcn_jax.data.multilabel import absent_note
from fcn_jax.data.source import Source
from fcn_jax.errors import DataError
from fcn_jax.explore.contents import Contents, read_split
from fcn_jax.explore.duplicates import duplicates
from fcn_jax.explore.opening import open_splits
from fcn_jax.explore.problems import Problem, Severity
from fcn_jax.explore.suggestions import Suggestion, decided_settings, suggest
from fcn_jax.plugins.api import Classes
from fcn_jax.plugins.registry import OWN_DISTRIBUTION
from fcn_jax.runtime import destination
from fcn_jax.runtime.progress import Progress

GENERATOR = "fcn-jax data check"

_FAILURES = {
    "damaged": ("{} file is damaged", "{} files are damaged"),
    "unreadable": ("{} file cannot be read", "{} files cannot be read"),
    "size": (
        "{} image differs in size from its mask",
        "{} images differ in size from their masks",
    ),
}
"""Kind -> message for one and for several."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        config: the settings.
        splits: the contents of the splits that could be opened; the training split is first.
        problems: errors, warnings and notes, in this order.
        suggestions: settings that fit the data.
    """

    config: Config
    splits: Mapping[str, Contents]
    problems: tuple[Problem, ...]
    suggestions: tuple[Suggestion, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.of("error")

    @property
    def classes(self) -> Classes:
        """The classes of the dataset."""
        return next(iter(self.splits.values())).source.classes

    def of(self, severity: Severity) -> list[Problem]:
        """The problems of one severity."""
        return [problem for problem in self.problems if problem.severity == severity]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        data, classes = self.config.data, self.classes
        return {
            "generator": GENERATOR,
            "ok": self.ok,
            "dataset": data.dataset.removeprefix(f"{OWN_DISTRIBUTION}:"),
            "root": data.root,
            "classes": [
                {"name": name, "color": color}
                for name, color in zip(classes.names, classes.palette, strict=True)
            ],
            "splits": {name: _summary(contents) for name, contents in self.splits.items()},
            "problems": [problem.to_dict() for problem in self.problems],
            "suggestions": [suggestion.to_dict() for suggestion in self.suggestions],
        }


def check(config: Config) -> Report:
    """Read every pair of every split of a dataset.

    The splits are those of the recipe and all others that the dataset tells of. Progress is shown
    on standard error.

    Args:
        config: the settings of a training.

    Raises:
        DataError: no split can be opened.
        ConfigError, PluginError: as in `fcn_jax.data.splits.open_splits`.
    """
    opened = open_splits(config)
    config, sources = opened.config, opened.sources
    recipe_splits = dict.fromkeys((config.data.train_split, config.data.val_split))
    used = [split for split in recipe_splits if split in sources]
    first = next(iter(sources.values()))
    labels = first.labels or as_label_map(len(first.classes))
    with Progress("reading images and masks", sum(map(len, sources.values()))) as progress:
        splits = {
            name: read_split(source, source.labels or labels, progress.advance)
            for name, source in sources.items()
        }
    training = splits.get(config.data.train_split)
    config, decided = decided_settings(config, training) if training else (config, [])
    notes = (
        *opened.notes,
        *decided,
        *reading_notes([m for c in splits.values() for m in c.masks], labels),
    )
    problems = [
        *(_unopened(config, split, error) for split, error in opened.errors.items()),
        *_failures(config, splits),
        *_labels(config, splits, used, labels),
        *_classes(splits, used),
        *_multilabel(config, splits),
        *duplicates(splits, used, refused=_overlap({s: sources[s] for s in used})),
        *(Problem("note", "reading", "", note) for note in notes),
    ]
    order = ("error", "warning", "note")
    problems.sort(key=lambda problem: order.index(problem.severity))
    suggestions = suggest(config, training) if training else []
    return Report(config, splits, tuple(problems), tuple(suggestions))


def check_path(path: Path) -> None:
    """Check that a report can be written as JSON, before the data are read.

    Raises:
        WriteError: the path is a folder or a file that is not such a report, or its folder is not
            writable.
    """
    destination.check_file(path, _is_ours, f"a report of {GENERATOR}")


def _is_ours(path: Path) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return f'"generator": "{GENERATOR}"'.encode() in file.read(512)


def _unopened(config: Config, split: str, error: str) -> Problem:
    is_used = split in (config.data.train_split, config.data.val_split)
    return Problem("error" if is_used else "warning", "split", split, f"cannot be opened: {error}")


def _overlap(sources: Mapping[str, Source]) -> bool:
    """Whether training refuses the splits, of which it trains on the first."""
    try:
        overlap.refuse_overlaps(sources, next(iter(sources), ""))
    except DataError:
        return True
    return False


def _failures(config: Config, splits: Mapping[str, Contents]) -> list[Problem]:
    problems = []
    for split, contents in splits.items():
        for kind, failures in contents.failures.items():
            if failures.count:
                skipped = kind == "damaged" and config.data.damaged == "skip"
                message = _FAILURES[kind][failures.count > 1].format(failures.count)
                message += " (skipped, as data.damaged=skip says)" if skipped else ""
                problems.append(
                    Problem(
                        "warning" if skipped else "error",
                        kind,
                        split,
                        message,
                        failures.count,
                        tuple(failures.messages),
                    )
                )
    return problems


def _labels(
    config: Config, splits: Mapping[str, Contents], used: Sequence[str], labels: LabelMap
) -> list[Problem]:
    """Contradictions between masks and classes, as `fcn_jax.data.inspection` finds them."""
    names = next(iter(splits.values())).source.classes.names
    training = config.data.train_split if config.data.train_split in splits else None
    masks = [mask for split in used for mask in splits[split].masks]
    found = mask_checks.unreadable(masks, labels, names)
    if masks and (not found or (len(names) == 1 and training is not None)):
        counts = {split: splits[split].class_pixels for split in used}
        found = mask_checks.implausible(masks, counts, labels, names, training)
    problems = [Problem("error", "labels", "", message) for message in found]
    for split in splits.keys() - set(used):
        for message in mask_checks.unreadable(splits[split].masks, labels, names):
            problems.append(Problem("warning", "labels", split, message))
    return problems


def _classes(splits: Mapping[str, Contents], used: Sequence[str]) -> list[Problem]:
    names = next(iter(splits.values())).source.classes.names
    masks = [mask for split in used for mask in splits[split].masks]
    problems = [
        Problem("warning", "classes", "", doubt) for doubt in mask_checks.doubts(masks, names)
    ]
    for split, contents in splits.items():
        if contents.masks and len(names) > 1:
            for note in split_notes(split, contents.class_pixels, contents.masks, names):
                message = note.removeprefix(f"{split}: ")
                problems.append(Problem("warning", "classes", split, message))
    if len(used) == 2:
        first, second = (splits[split].class_pixels[:-1] > 0 for split in used)
        if first.any() and second.any() and not (first & second).any():
            message = f"{used[0]} and {used[1]} have no class in common"
            problems.append(Problem("warning", "classes", "", message))
    return problems


def _multilabel(config: Config, splits: Mapping[str, Contents]) -> list[Problem]:
    """Classes without a pixel in splits whose masks have an axis of classes."""
    if config.model.task != "multilabel":
        return []
    problems = []
    for split, contents in splits.items():
        pixels, names = contents.class_pixels[:-1], contents.source.classes.names
        if contents.pixels and (note := absent_note(split, pixels, names)):
            message = note.removeprefix(f"{split}: ")
            problems.append(Problem("warning", "classes", split, message))
    return problems


def _summary(contents: Contents) -> dict[str, Any]:
    pixels = contents.class_pixels
    heights, widths = contents.sizes[contents.decoded].T
    return {
        "images": len(contents.source),
        "readable": int(contents.decoded.sum()),
        "height": _spread(heights),
        "width": _spread(widths),
        "ignored": float(pixels[-1] / contents.pixels) if contents.pixels else None,
        "labeled_pixels": int(contents.pixels - pixels[-1]),
        "class_pixels": pixels[:-1].tolist(),
        "class_images": contents.class_images.tolist(),
    }


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """The smallest, median and largest value, in pixels."""
    if not len(values):
        return None
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
