"""Images that are in more than one split: scores on them would say nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Mapping
from pathlib import Path

from fcn_jax.data.source import Source
from fcn_jax.errors import DataError, listing
from fcn_jax.plugins.api import Record


def refuse_overlaps(sources: Mapping[str, Source], training: str) -> None:
    """Check that no image of another split is trained on.

    Images are the same if they are one file, also by different paths or links; if they have the
    same ID and the same contents; or, for datasets that hold the contents of files, if these are
    the same. Copies under other names are not looked for, which would mean to read all files.

    Args:
        sources: sources by the name of their split.
        training: the split that is trained on.

    Raises:
        DataError: an image is in both; all such images are counted.
    """
    if len(sources) < 2:
        return
    trained: dict[Hashable, str] = {}
    files: dict[str, Path] = {}
    for record in sources[training]:
        trained.setdefault(_identity(record), record.id)
        if isinstance(record.image, Path):
            files[record.id] = record.image
    for split, source in sources.items():
        if split == training:
            continue
        common = [r.id for r in source if _identity(r) in trained or _is_copy(r, files)]
        if common:
            raise DataError(
                f"{len(common)} of {len(source)} images of split '{split}' are in '{training}' "
                f"too: {listing(common)}; scores on images that were trained on mean nothing. "
                "Remove them from one of the lists, or set data.train_split and data.val_split to "
                "splits without common images"
            )


def _identity(record: Record) -> Hashable:
    """What is equal for the same file, or the same contents in memory."""
    if isinstance(record.image, bytes):
        return hashlib.blake2b(record.image, digest_size=16).digest()
    try:
        state = os.stat(record.image)
    except OSError:  # missing files are reported when the masks are inspected
        return record.image
    # File systems without numbers of files have 0.
    return (state.st_dev, state.st_ino) if state.st_ino else record.image.resolve()


def _is_copy(record: Record, files: Mapping[str, Path]) -> bool:
    """Whether an image has the ID and the contents of one that is trained on."""
    other = files.get(record.id)
    if other is None or not isinstance(record.image, Path):
        return False
    try:
        return (
            os.stat(other).st_size == os.stat(record.image).st_size > 0
            and other.read_bytes() == record.image.read_bytes()
        )
    except OSError:
        return False
