"""The order of the training records and their random numbers, as Grain draws them.

Another version of Grain may draw another order. A run that continues with it would silently see
some images twice in an epoch and others not at all, so checkpoints record a fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from fcn_jax.runtime.versions import package_versions

_FIRST = 2
"""Batches at the start and at the end of an epoch that the fingerprint covers."""


def batches(
    records: grain.MapDataset[Any],
    transform: Callable[[Any, np.random.Generator], Any],
    *,
    batch_size: int,
    seed: int,
    epochs: int | None = None,
    rows: Sequence[int] | None = None,
) -> grain.MapDataset[Any]:
    """Shuffle, transform and batch records.

    Each epoch has its own order and exactly `len(records) // batch_size` batches. The remaining
    records, which are others in every epoch, are dropped.

    Args:
        records: N records, of which only those of a batch are read.
        transform: record and its random generator -> element of a batch.
        batch_size: number of elements in a batch, at most N.
        seed: 0 to 2**32 - 1.
        epochs: number of epochs; None never stops.
        rows: elements of each batch, by their position in it; all if None. Only they are read.
    """
    whole = len(records) // batch_size * batch_size
    elements = records.seed(seed).shuffle().random_map(transform).slice(slice(0, whole))
    if rows is not None and len(rows) < batch_size:
        elements, batch_size = _Rows(elements, batch_size, rows), len(rows)
    return elements.batch(batch_size).repeat(epochs)


class _Rows(grain.MapDataset[Any]):
    """Some rows of each batch, which is a group of `batch_size` elements."""

    def __init__(self, parent: grain.MapDataset[Any], batch_size: int, rows: Sequence[int]) -> None:
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, tuple(rows)

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self._rows))  # Whole batches: this holds over epochs, too.
        return self._parent[batch * self._batch_size + self._rows[row]]


def indices(
    records: int, batch_size: int, seed: int, epochs: int
) -> grain.MapDataset[dict[str, np.ndarray]]:
    """Return batches that say which record comes where, and with which random numbers.

    Returns:
        Batches of {"record": i64[B], 0 to records - 1; "draw": u32[B], the first random number that
        the transform of the record draws}.
    """

    def look(record: int, rng: np.random.Generator) -> dict[str, np.generic]:
        return {"record": np.int64(record), "draw": rng.integers(2**32, dtype=np.uint32)}

    numbers = grain.MapDataset.range(records)
    return batches(numbers, look, batch_size=batch_size, seed=seed, epochs=epochs)


def fingerprint(records: int, batch_size: int, seed: int) -> dict[str, str | None]:
    """Return a digest of the first two epochs, and Grain's version, ready for JSON.

    The digest covers the first and last batches of both epochs, and the random numbers of their
    transforms.
    """
    drawn = indices(records, batch_size, seed, epochs=2)
    steps = len(drawn) // 2
    some = {*range(min(_FIRST, steps)), *range(max(0, steps - _FIRST), steps)}
    digest = hashlib.sha256()
    for epoch in range(2):
        for step in sorted(some):
            batch = drawn[epoch * steps + step]
            digest.update(batch["record"].astype("<i8").tobytes())
            digest.update(batch["draw"].astype("<u4").tobytes())
    return {"grain": package_versions(("grain",))["grain"], "digest": digest.hexdigest()[:32]}
