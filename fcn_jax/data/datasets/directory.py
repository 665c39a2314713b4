"""The parts that datasets in folders share, whose files are read in place.

A dataset opens a split in four steps: `require_root`, `check_split`, `files_by_stem` for its images
and its masks, and `match`; the result is a `DirectorySource`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fcn_jax.data.datasets.files import files_by_stem
from fcn_jax.data.datasets.matching import Pairs, match, read_ids
from fcn_jax.data.datasets.names import IMAGE_SUFFIXES, MASK_SUFFIXES
from fcn_jax.data.decode import decode_record
from fcn_jax.data.labels.label_map import LabelMap, as_label_map
from fcn_jax.data.source import Source
from fcn_jax.data.value_range import Assumed, Range
from fcn_jax.errors import DataError, did_you_mean
from fcn_jax.plugins.api import Classes, Example, Record

__all__ = [
    "IMAGE_SUFFIXES",
    "MASK_SUFFIXES",
    "DirectorySource",
    "check_split",
    "files_by_stem",
    "match",
    "read_ids",
    "require_root",
]

_SPLIT_WORDS = {
    "data.train_split": ("train", "training", "trainset", "trn", "tr", "trainval"),
    "data.val_split": (
        "val", "valid", "validation", "valset", "dev", "eval", "evaluation", "test", "testing",
    ),
}  # fmt: skip
"""Setting -> names of splits that are used for it, in order of preference."""

SPLIT_NAMES = frozenset(name for names in _SPLIT_WORDS.values() for name in names)
"""Usual names of splits, in lower case."""


@dataclasses.dataclass(eq=False)
class DirectorySource(Source):
    """A split whose images and masks `fcn_jax.data.decode.decode_record` reads.

    Attributes:
        classes: the classes.
        records: one per image.
        labels: the labels of the stored values and colors. By default the stored values are the
            labels, and 255 is `IGNORE_INDEX`.
        notes: assumptions that were made when the split was opened, one line each.
        value_range: for images of more than 8 bits; see `fcn_jax.data.decode.read_image`.
    """

    classes: Classes
    records: Sequence[Record]
    labels: LabelMap | None = None
    notes: tuple[str, ...] = ()
    value_range: Range | Assumed | None = None

    def __post_init__(self) -> None:
        """Set the default of `labels`, and take the records' notes."""
        self.labels = self.labels or as_label_map(len(self.classes))
        if isinstance(self.records, Pairs):
            self.notes = (*self.notes, *self.records.notes)
            self.records = tuple(self.records)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        """The record at `index`, 0 <= index < len."""
        return self.records[index]

    def decode(self, record: Record) -> Example:
        """Decode a record. Raises `DataError`; see `fcn_jax.data.decode.decode_record`."""
        return self.decode_resized(record, 1.0)

    def decode_resized(self, record: Record, factor: float) -> Example:
        """Decode a record at another size; see `fcn_jax.plugins.api.Source`."""
        labels = self.labels or len(self.classes)
        return decode_record(record, labels, factor=factor, value_range=self.value_range)


def require_root(root: Path | None, name: str, holds: str) -> Path:
    """The dataset's folder.

    Args:
        root: `--data`, or None.
        name: the dataset.
        holds: the expected contents of the folder, for the message.

    Raises:
        DataError: the folder was not given, or is not a folder.
    """
    if root is None:
        raise DataError(
            f"dataset '{name}' needs its folder: pass --data DIR, a folder that holds {holds}"
        )
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"--data {root} {problem}; dataset '{name}' expects a folder that holds {holds}"
        )
    return root


def check_split(split: str, available: Iterable[str], where: Path) -> None:
    """Check that a split exists.

    Raises:
        DataError: it does not exist. The message names the splits that do, and a setting to use one
            with a similar meaning.
    """
    names = list(available)
    if split in names:
        return
    advice = ""
    for setting, words in _SPLIT_WORDS.items():
        near = [name for word in words for name in sorted(names) if name.lower() == word]
        if split.lower() in words and near:
            value = near[0] if re.fullmatch(r"[\w.-]+", near[0]) else f"'{near[0]}'"
            advice = f" To use '{near[0]}', pass --set {setting}={value}"
    raise DataError(f"{where} has no split '{split}'. {did_you_mean(split, names)}{advice}")
