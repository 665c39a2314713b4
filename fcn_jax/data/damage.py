"""Splits without records whose files are damaged (the setting `data.damaged=skip`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fcn_jax.data.source import Source
from fcn_jax.data.threads import on_threads
from fcn_jax.errors import DamagedError, DataError, listing
from fcn_jax.plugins.api import Example, Record


class KeptSource(Source):
    """Some of a source's records."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        """Keep records of a source.

        Args:
            source: the whole split.
            indices: the indices of the kept records, in order; an index may occur several times.
        """
        self._source, self._indices = source, indices
        self.classes, self.labels, self.notes = source.classes, source.labels, source.notes

    def __len__(self) -> int:
        """Number of kept images."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        """The record at `index`, 0 <= index < len."""
        return self._source[self._indices[index]]

    def decode(self, record: Record) -> Example:
        """Decode a record as the source does."""
        return self._source.decode(record)

    def decode_resized(self, record: Record, factor: float) -> Example:
        """Decode a record at another size as the source does."""
        return self._source.decode_resized(record, factor)


def without_damaged(
    source: Source, progress: Callable[..., object] = lambda *_: None, *, replace: bool = False
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
        except DataError as error:
            return str(error) if isinstance(error, DamagedError) else None
        return None

    messages = on_threads(fault, range(len(source)), progress)
    faults = [message for message in messages if message is not None]
    kept = [index for index, message in enumerate(messages) if message is None]
    if not faults:
        return source, ()
    if not kept:
        raise DataError(
            f"all {len(faults)} images of the split or their masks are damaged: {listing(faults)}"
        )
    if replace:
        following = np.searchsorted(kept, np.arange(len(source))) % len(kept)
        kept = [kept[place] for place in following.tolist()]
    return KeptSource(source, kept), tuple(faults)


def note(faults: tuple[str, ...], total: int, split: str) -> str:
    """The line that names the skipped records of a split of `total` images."""
    # Without the advice at the end of each message.
    short = listing(fault.partition("; ")[0] for fault in faults)
    return (
        f"{len(faults)} of {total} images of split '{split}' are skipped as damaged "
        f"(data.damaged=skip): {short}"
    )
