"""Data sets that lie in folders and are read in place, without a prepared copy that could go stale.

This is what the layouts (`voc`, `camvid`, `folder`) share: the source, and the checks made when a split is opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fcn_jax.api import IGNORE_INDEX, Classes, Example, Record
from fcn_jax.data.decode import Color, decode_record
from fcn_jax.data.value_range import Assumed, Range
from fcn_jax.errors import DataError, did_you_mean, listing
from fcn_jax.text_file import read_text

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""File name endings that count as images, in lower case."""


@dataclasses.dataclass(eq=False)
class DirectorySource:
    """A split whose images and masks are files; a `fcn_jax.api.Source`.

    Attributes:
        classes: the classes.
        records: one per image.
        void: mask labels that become `IGNORE_INDEX`.
        palette: RGB color -> label for masks in colors; None refuses them.
        value_range: of images of more than 8 bits; see `fcn_jax.data.decode.read_image`.
    """

    classes: Classes
    records: tuple[Record, ...]
    void: tuple[int, ...] = (IGNORE_INDEX,)
    palette: Mapping[Color, int] | None = None
    value_range: Range | Assumed | None = None

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
        """Decode a record at another size; see `fcn_jax.api.Source`."""
        return decode_record(
            record, len(self.classes), void=self.void, palette=self.palette, factor=factor, value_range=self.value_range
        )


def require_root(root: Path | None, name: str, holds: str) -> Path:
    """The data set's folder.

    Args:
        root: `--data`, or None.
        name: the data set.
        holds: what the folder should hold, for the message.

    Raises:
        DataError: it was not given, or is no folder.
    """
    if root is None:
        raise DataError(f"data set '{name}' needs its folder: pass --data DIR, a folder that holds {holds}")
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"--data {root} {problem}; data set '{name}' wants a folder that holds {holds}")
    return root


def check_split(split: str, available: Iterable[str], where: Path) -> None:
    """Raise `DataError` saying which splits exist, unless `split` is one of them."""
    names = list(available)
    if split not in names:
        raise DataError(f"{where} has no split '{split}'. {did_you_mean(split, names)}")


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a folder (not of its subfolders) by name without ending, in order of name.

    Args:
        folder: an existing folder or a missing one, which is empty.
        suffixes: endings to take, in lower case.

    Raises:
        DataError: two files differ only in their ending.
    """
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(
                f"{folder} holds both {found[path.stem].name} and {path.name}; keep one, images and masks are matched by name"
            )
        found[path.stem] = path
    return found


def read_ids(path: Path) -> tuple[str, ...]:
    """The image names that a split file lists: the first word of each line, without blank lines.

    Raises:
        DataError: the file cannot be read, or names an image twice.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read the split file ({error}); it is text with one image name a line") from error
    ids = tuple(line.split()[0] for line in lines if line.strip())
    repeated = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if repeated:
        raise DataError(f"{path}: images listed twice: {listing(repeated)}; list each once")
    return ids


def match(
    ids: Sequence[str], images: Mapping[str, Path], masks: Mapping[str, Path], *, split: str, where: Path
) -> tuple[Record, ...]:
    """Pair each name's image and mask.

    Args:
        ids: names without ending; the records are in this order.
        images: files by name.
        masks: files by name.
        split: for the messages.
        where: for the messages.

    Raises:
        DataError: there is no name, or images or masks are missing; all are counted and the first dozen named.
    """
    if not ids:
        raise DataError(
            f"{where}: split '{split}' holds no images; check that the folder is the right one and its files are in place"
        )
    problems = []
    for kind, files in (("image", images), ("mask", masks)):
        missing = [name for name in ids if name not in files]
        if missing:
            problems.append(f"{len(missing)} of {len(ids)} {kind}s are missing: {listing(missing)}")
    if problems:
        raise DataError(f"{where}: split '{split}': {'; '.join(problems)}. Add the files or take the names off the split")
    return tuple(Record(name, images[name], masks[name]) for name in ids)
