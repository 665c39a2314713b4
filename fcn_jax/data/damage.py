"""Splits without records whose files are damaged (the setting `data.damaged=skip`)."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fcn_jax.errors import DamagedError, DataError, listing
from fcn_jax.plugins.api import Record, Source

_MAX_THREADS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class KeptSource:
    """Some of a source's records; a `fcn_jax.plugins.api.Source`.

    All other attributes are those of the source.

    Attributes:
        source: the whole split.
        indices: the indices of the kept records, in order; an index may occur several times.
    """

    source: Source
    indices: tuple[int, ...]

    def __len__(self) -> int:
        """Number of kept images."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        """The record at `index`, 0 <= index < len."""
        return self.source[self.indices[index]]

    @property
    def records(self) -> tuple[Record, ...]:
        """All kept records."""
        return tuple(self[index] for index in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        # During unpickling there is no source yet.
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)


def without_damaged(
    source: Source, progress: Callable[[int, int], None] | None = None, *, replace: bool = False
) -> tuple[Source, tuple[str, ...]]:
    """Decode every image and mask once, on threads, and skip the damaged records.

    Other errors, such as missing files, wrong labels and different sizes, are raised later, when
    the record is decoded.

    Args:
        source: a split.
        progress: called with the number of records that are done, and the number of all.
        replace: whether the next intact record replaces a damaged one. This keeps the number of
            records, and with it the order and the schedule of a training.

    Returns:
        The source itself if nothing is damaged, otherwise a `KeptSource`; and one message for each
        damaged record, which names its file.

    Raises:
        DataError: every record is damaged.
    """

    def fault(index: int) -> str | None:
        try:
            source.decode(source[index])
        except DamagedError as error:
            return str(error)
        except DataError:
            pass
        return None

    faults, kept = [], []
    with concurrent.futures.ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for index, message in enumerate(pool.map(fault, range(len(source)))):
            if message is None:
                kept.append(index)
            else:
                faults.append(message)
            if progress:
                progress(index + 1, len(source))
    if not faults:
        return source, ()
    if not kept:
        raise DataError(
            f"all {len(faults)} images of the split or their masks are damaged: {listing(faults)}"
        )
    if replace:
        following = np.searchsorted(kept, np.arange(len(source))) % len(kept)
        kept = [kept[place] for place in following.tolist()]
    return KeptSource(source, tuple(kept)), tuple(faults)


def note(faults: tuple[str, ...], total: int, split: str) -> str:
    """The line that names the skipped records of a split of `total` images."""
    # Without the advice at the end of each message.
    short = listing(fault.partition("; ")[0] for fault in faults)
    return (
        f"{len(faults)} of {total} images of split '{split}' are skipped as damaged "
        f"(data.damaged=skip): {short}"
    )
