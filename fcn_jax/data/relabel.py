"""A dataset's source with the classes that a recipe changes (`fcn_jax.data.labels.remap`)."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from fcn_jax.data.labels.label_map import as_label_map
from fcn_jax.data.labels.remap import Remap, Remapped, remapped
from fcn_jax.data.source import Source
from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import IGNORE_INDEX, Example, Record


class RelabeledSource(Source):
    """A source whose decoded masks get other labels."""

    def __init__(self, source: Source, found: Remapped, new_labels: tuple[int, ...]) -> None:
        """Wrap a source; `new_labels` has the new label of each old one."""
        self._source = source
        self._table = np.full(256, IGNORE_INDEX, np.uint8)
        self._table[: len(new_labels)] = new_labels
        self.classes, self.notes = found.classes, (*source.notes, *found.notes)
        # Only if the source itself reads masks by a map can they be inspected without it.
        self.labels = None if source.labels is None else found.labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        """The record at `index`, 0 <= index < len."""
        return self._source[index]

    def decode(self, record: Record) -> Example:
        """Decode a record as the source does, with other labels."""
        return self._changed(self._source.decode(record))

    def decode_resized(self, record: Record, factor: float) -> Example:
        """Decode a record at another size as the source does, with other labels."""
        return self._changed(self._source.decode_resized(record, factor))

    def _changed(self, example: Example) -> Example:
        return example._replace(mask=np.asarray(cv2.LUT(example.mask, self._table)))


def relabeled(source: Source, remap: Remap) -> Source:
    """The source with other classes; the source itself if `remap` changes nothing.

    Args:
        source: a dataset's split. If it is a dataclass with the fields `classes` and `labels`, the
            result is a copy with other ones.
        remap: the changes.

    Raises:
        ConfigError: the changes contradict each other or the classes, or they need stored values
            that the dataset does not give.
    """
    if not remap:
        return source
    found = remapped(source.classes, source.labels or as_label_map(len(source.classes)), remap)
    fields = (
        {f.name for f in dataclasses.fields(source)} if dataclasses.is_dataclass(source) else ()
    )
    if source.labels is not None and {"classes", "labels", "notes"} <= set(fields):
        changed: Source = dataclasses.replace(  # type: ignore[type-var]
            source,
            classes=found.classes,
            labels=found.labels,
            notes=(*source.notes, *found.notes),
        )
        return changed
    if found.new_labels is None or remap.reduce_zero_label:
        raise ConfigError(
            "data.label_map and data.reduce_zero_label: the dataset reads its masks by a rule of "
            "its own, so that only its classes can change, not the meaning of stored values; name "
            f"its classes ({', '.join(source.classes.names)})"
        )
    return RelabeledSource(source, found, found.new_labels)
