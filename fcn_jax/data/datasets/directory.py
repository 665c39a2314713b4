"""The parts that datasets in folders share, whose files are read in place.

A dataset opens a split in four steps: `locate` (or `require_root`), `check_split`, `files_by_stem`
for its images and its masks, and `match`; the result is a `DirectorySource`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from fcn_jax.data.datasets import archives
from fcn_jax.data.datasets.files import Files, file_names, files_by_stem, subfolders
from fcn_jax.data.datasets.matching import Pairs, match, read_ids
from fcn_jax.data.datasets.names import IMAGE_SUFFIXES, MASK_SUFFIXES, ending
from fcn_jax.data.decode import decode_record
from fcn_jax.data.labels.label_map import LabelMap, as_label_map
from fcn_jax.data.source import Source
from fcn_jax.data.value_range import Scaling
from fcn_jax.errors import DataError, UnknownSplitError, did_you_mean, listing
from fcn_jax.plugins.api import Classes, Example, Record

__all__ = [
    "IMAGE_SUFFIXES",
    "MASK_SUFFIXES",
    "DirectorySource",
    "check_split",
    "files_by_stem",
    "first_folder",
    "locate",
    "match",
    "read_ids",
    "renamed",
    "require_root",
]

Found = TypeVar("Found")

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
        value_range: how the values of images are scaled; see `fcn_jax.data.decode.read_image`.
        channels: channels of the images; see there.
    """

    classes: Classes
    records: Sequence[Record]
    labels: LabelMap | None = None
    notes: tuple[str, ...] = ()
    value_range: Scaling | None = None
    channels: int = 3

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
        return decode_record(
            record, labels, factor=factor, value_range=self.value_range, channels=self.channels
        )


def require_root(root: Path | None, name: str, holds: str) -> Path:
    """The dataset's folder; if it is an archive, the folder into which that is unpacked.

    Args:
        root: `--data`, or None.
        name: the dataset.
        holds: the expected contents of the folder, for the message.

    Raises:
        DataError: the folder was not given, is neither a folder nor an archive, or the archive is
            damaged or has paths that leave its folder.
        WriteError: the archive cannot be unpacked, for example because the disk is full.
    """
    if root is None:
        raise DataError(
            f"dataset '{name}' needs its folder: pass --data DIR, a folder that holds {holds}"
        )
    if root.is_file() and archives.is_archive(root):
        root = archives.unpacked([root])
        # Many archives hold one folder, in which everything lies.
        while len(below := subfolders(root)) == 1 and not file_names(root):
            root /= below[0]
        return root
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"--data {root} {problem}; dataset '{name}' expects a folder that holds {holds}"
        )
    return root


def locate(
    root: Path | None,
    name: str,
    holds: str,
    find: Callable[[Path], Found | None],
    packed: Sequence[str] = (),
) -> Found:
    """The folders of a dataset.

    Args:
        root: `--data`, or None.
        name: the dataset.
        holds: the expected contents of the folder, for messages.
        find: function that finds the dataset in a folder, or returns None.
        packed: globs over the names of the archives in which the dataset is distributed. If the
            folder holds archives for each glob, and not the dataset, they are unpacked into the
            cache.

    Returns:
        The result of `find`.

    Raises:
        DataError: the dataset is not in the folder; the message says what is. Also as
            `require_root` raises it.
        WriteError: as for `require_root`.
    """
    root = require_root(root, name, holds)
    found = find(root)
    if found is None and packed:
        kinds = [fnmatch.filter(file_names(root), glob) for glob in packed]
        if all(kinds):
            names = sorted({name for kind in kinds for name in kind})
            found = find(archives.unpacked([root / name for name in names]))
    if found is not None:
        return found
    from fcn_jax.data.datasets.recognize import looks_like  # it imports the datasets

    hint = looks_like(root, without=name)
    raise DataError(
        f"{root}: dataset '{name}' expects a folder that holds {holds}; found here: "
        f"{contents(root)}{f'. {hint}' if hint else ''}"
    )


def contents(folder: Path) -> str:
    """A phrase on what lies in a folder: its subfolders, and its files or their endings."""
    files = file_names(folder)
    said = [f"{name}/" for name in subfolders(folder)]
    if len(files) <= 4:
        said += files
    else:
        endings = Counter(ending(name) or "no ending" for name in files)
        said += [f"{count} files in {found}" for found, count in endings.most_common(3)]
    return listing(said) or "nothing"


def first_folder(root: Path, *names: str) -> Path | None:
    """The first of the named folders in `root`, or else in a subfolder of it; None if none is."""
    for base in (root, *(root / name for name in subfolders(root))):
        for name in names:
            if (base / name).is_dir():
                return base / name
    return None


def renamed(files: Files, suffix: str) -> Files:
    """The files whose names end in `suffix`, by their names without it."""
    return Files(
        files.folder,
        {key.removesuffix(suffix): path for key, path in files.items() if key.endswith(suffix)},
    )


def check_split(split: str, available: Iterable[str], where: Path) -> None:
    """Check that a split exists.

    Raises:
        UnknownSplitError: it does not exist. The message names the splits that do, and a setting
            to use one with a similar meaning.
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
    raise UnknownSplitError(
        f"{where} has no split '{split}'. {did_you_mean(split, names)}{advice}", names
    )
