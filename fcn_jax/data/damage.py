"""Splits without records whose files are damaged (the setting `data.damaged=skip`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from fcn_jax.data.source import Source
from fcn_jax.data.threads import on_threads
from fcn_jax.errors import DamagedError, DataError, listing
from fcn_jax.plugins.api import Example, Record

_log = logging.getLogger(__name__)


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


class SkippingSource(KeptSource):
    """The intact records of a split, of which some may be damaged later, during the run.

    In training the next intact record replaces one that is found damaged, as it does when the
    records are checked before a run. In evaluation `fcn_jax.data.pipeline.eval_examples` leaves it
    out.
    """

    def __init__(self, source: Source, indices: Sequence[int], *, replace: bool) -> None:
        """Keep records of a source; `replace` is for training."""
        super().__init__(source, indices)
        self._replace, self._named = replace, set[str]()

    def decode(self, record: Record) -> Example:
        """Decode a record, or the one that replaces it."""
        return self._intact(record, self._source.decode)

    def decode_resized(self, record: Record, factor: float) -> Example:
        """Decode a record, or the one that replaces it, at another size."""
        return self._intact(record, lambda one: self._source.decode_resized(one, factor))

    def _intact(self, record: Record, decode: Callable[[Record], Example]) -> Example:
        try:
            return decode(record)
        except DamagedError as error:
            if not self._replace:
                raise
            if record.id not in self._named:  # once in each process
                self._named.add(record.id)
                _log.warning(
                    "%s; the next intact image replaces it (data.damaged=skip)", gist(error)
                )
            following = iter([*self._source, *self._source])
            while next(following).id != record.id:
                pass
            for _ in range(len(self._source) - 1):
                try:
                    return decode(next(following))
                except DamagedError:
                    continue
            raise


def gist(fault: object) -> str:
    """The message of an error without the advice at its end."""
    return str(fault).partition("; ")[0]


def without_damaged(
    source: Source, progress: Callable[..., object] = lambda *_: None, *, replace: bool = False
) -> tuple[SkippingSource, tuple[str, ...]]:
    """Decode every image and mask once, on threads, and skip the damaged records.

    Records that are damaged later are skipped, too; see `SkippingSource`.

    Other errors, such as missing files, wrong labels and different sizes, are raised later, when
    the record is decoded.

    Args:
        source: a split.
        progress: called with the number of records that are done, and the number of all.
        replace: whether the next intact record replaces a damaged one. This keeps the number of
            records, and with it the order and the schedule of a training.

    Returns:
        The intact records, and one message for each damaged record, which names its file.

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
    if not kept:
        raise DataError(
            f"all {len(faults)} images of the split or their masks are damaged: {listing(faults)}"
        )
    if replace:
        following = np.searchsorted(kept, np.arange(len(source))) % len(kept)
        kept = [kept[place] for place in following.tolist()]
    return SkippingSource(source, kept, replace=replace), tuple(faults)


def note(faults: tuple[str, ...], total: int, split: str) -> str:
    """The line that names the skipped records of a split of `total` images."""
    short = listing(map(gist, faults))
    return (
        f"{len(faults)} of {total} images of split '{split}' are skipped as damaged "
        f"(data.damaged=skip): {short}"
    )
