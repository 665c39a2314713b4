"""The images of one split of a dataset, which plugins subclass as `fcn_jax.api.Source`."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fcn_jax.plugins.api import Classes, Example, Record

if TYPE_CHECKING:
    from fcn_jax.data.labels.label_map import LabelMap


class Source(abc.ABC):
    """Random access to one split of a dataset. It must pickle: each input worker holds a copy.

    Attributes:
        classes: the classes.
        labels: the map with which `fcn_jax.data.decode.decode_record` reads the masks, so that they
            can be inspected before training without their images; None if `decode` reads them in
            another way.
        notes: assumptions that were made when the source was opened, one line each.
    """

    classes: Classes
    labels: LabelMap | None = None
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of images, at least 1: opening an empty split raises `DataError`."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record:
        """The record at `index`, 0 <= index < len. Reads no pixels."""

    def __iter__(self) -> Iterator[Record]:
        """The records in order."""
        return (self[index] for index in range(len(self)))

    @abc.abstractmethod
    def decode(self, record: Record) -> Example:
        """Decode a record.

        Raises:
            DataError: a file is missing, unreadable, of another size or has an invalid label; the
                message names the file.
        """

    def decode_resized(self, record: Record, factor: float) -> Example:
        """Decode a record and resize it by a factor, as `fcn_jax.data.geometry.resize` does.

        A source may override it to decode at a smaller size in less time, as JPEGs allow and
        `fcn_jax.data.decode.decode_record` does. The result must have the same size and mask, and
        the same image unless it shrinks to half or less. There, photographs may differ by about 2
        of 255 on average. It raises the errors of `decode`.
        """
        from fcn_jax.data.geometry import resize  # imports OpenCV

        return resize(self.decode(record), factor)
