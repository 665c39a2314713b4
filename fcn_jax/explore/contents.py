"""One pass over a split: every image and mask is decoded once, as in training.

Memory grows by about 200 bytes a pair, whatever the files hold.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fcn_jax.data.contents import name_of
from fcn_jax.data.decode import read_stored_mask
from fcn_jax.data.inspection import class_pixels
from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.labels.mask_errors import problem
from fcn_jax.data.labels.mask_labels import read
from fcn_jax.data.labels.mask_values import Histogram, Reading, StoredMask, histogram
from fcn_jax.data.mask_checks import Mask
from fcn_jax.data.multilabel import label_counts
from fcn_jax.data.source import Source
from fcn_jax.data.threads import each_on_threads
from fcn_jax.errors import DamagedError, DataError, SizeMismatchError
from fcn_jax.plugins.api import IGNORE_INDEX, Record

_KEPT_FAILURES = 1000
"""Messages of one kind that are kept; others are only counted."""

_KEPT_VALUES = 100_000
"""Distinct values of all unreadable masks together that are kept."""

_FEW = 4
"""Number of distinct values up to which a mask's values matter for the checks."""


@dataclasses.dataclass
class Failures:
    """Failures of one kind.

    Attributes:
        count: their number.
        messages: the first thousand, one line each.
    """

    count: int = 0
    messages: list[str] = dataclasses.field(default_factory=list)

    def add(self, message: str) -> None:
        """Count a failure."""
        self.count += 1
        if len(self.messages) < _KEPT_FAILURES:
            self.messages.append(message)


@dataclasses.dataclass
class Contents:
    """The contents of a split of N pairs and K classes.

    Attributes:
        source: the split.
        failures: kind -> failures; the kinds are "damaged", "unreadable" and "size".
        sizes: i32[N,2], height and width; 0 for pairs that cannot be decoded.
        digests: u64[N,3], two numbers for the decoded image and one for its labels.
        pixels: of all readable masks.
        class_pixels: i64[K+1], pixels of each class, and ignored pixels: for the task "multilabel",
            their mean over the classes.
        class_images: i64[K], masks in which each class occurs.
        masks: the readable masks, and those with values that no class has; none for the task
            "multilabel".
    """

    source: Source
    failures: dict[str, Failures]
    sizes: np.ndarray
    digests: np.ndarray
    pixels: int
    class_pixels: np.ndarray
    class_images: np.ndarray
    masks: list[Mask]

    @property
    def decoded(self) -> np.ndarray:
        """bool[N], the pairs that can be decoded."""
        return np.asarray(self.sizes[:, 0] > 0)


class _Pair(NamedTuple):
    """What is kept of a pair.

    Attributes:
        errors: why it cannot be read.
        mask: name of its mask.
        size: height and width.
        digest: of image and mask.
        found: values that the mask's file stores.
        counts: i64[3,K], pixels of a mask with an axis of classes: without the class, with it,
            ignored.
    """

    errors: tuple[DataError, ...]
    mask: str
    size: tuple[int, int] | None = None
    digest: bytes = b""
    found: Histogram | None = None
    counts: np.ndarray | None = None


def read_split(
    source: Source, labels: LabelMap, advance: Callable[[], object] = lambda: None
) -> Contents:
    """Decode every pair of a split, on threads.

    Args:
        source: the split.
        labels: the labels of its masks.
        advance: called after each pair.
    """
    count, classes = len(source), len(source.classes)
    contents = Contents(
        source,
        {kind: Failures() for kind in ("damaged", "unreadable", "size")},
        np.zeros((count, 2), np.int32),
        np.zeros((count, 3), np.uint64),
        0,
        np.zeros(classes + 1, np.int64),
        np.zeros(classes, np.int64),
        [],
    )
    shared, ignored = _Shared(), np.zeros(classes, np.int64)
    pairs = each_on_threads(functools.partial(_read, source, labels), range(count))
    for index, pair in enumerate(pairs):
        for error in pair.errors:
            contents.failures[_kind(error)].add(str(error))
        if pair.size is not None:
            contents.sizes[index] = pair.size
            contents.digests[index] = np.frombuffer(pair.digest, np.uint64)
        if pair.found is not None:
            mask = Mask(pair.mask, pair.found, read(pair.found, labels))
            pixels = class_pixels(mask, classes)
            contents.pixels += int(pixels.sum())
            contents.class_pixels += pixels
            contents.class_images += pixels[:-1] > 0
            contents.masks.append(shared.smaller(mask))
        if pair.counts is not None:
            contents.pixels += int(pair.counts[:, 0].sum())
            contents.class_pixels[:-1] += pair.counts[1]
            contents.class_images += pair.counts[1] > 0
            ignored += pair.counts[2]
        advance()
    if ignored.any():
        contents.class_pixels[-1] += round(ignored.mean())
    return contents


def _read(source: Source, labels: LabelMap, index: int) -> _Pair:
    record = source[index]
    name = name_of(record.mask, f"mask of {record.id}")
    errors: list[DataError] = []
    example = None
    try:
        example = source.decode(record)
    except DataError as error:
        errors.append(error)
    found = counts = None
    if source.labels is not None:
        found = _stored(record, name, labels, errors)
    elif example is not None and example.mask.ndim == 3:
        counts = label_counts(example.mask)
    elif example is not None:
        found = histogram(StoredMask(np.ascontiguousarray(example.mask)))
    if example is None:
        return _Pair(tuple(errors), name, found=found)
    height, width = example.mask.shape[:2]
    image, mask = (np.ascontiguousarray(array) for array in (example.image, example.mask))
    digest = hashlib.blake2b(image.data, digest_size=16, salt=b"%dx%d" % (height, width)).digest()
    digest += hashlib.blake2b(mask.data, digest_size=8).digest()
    return _Pair(tuple(errors), name, (height, width), digest, found, counts)


def _stored(
    record: Record, name: str, labels: LabelMap, errors: list[DataError]
) -> Histogram | None:
    """The values that a mask's file stores.

    If the pair could not be decoded, `errors` changes: an error of the mask is added unless it is
    there already, and one on values without a label is removed, because these are reported together
    for all masks.
    """
    try:
        found = histogram(read_stored_mask(record.mask, name=name))
    except DataError as error:
        if not any(str(other).startswith(str(error)) for other in errors):
            errors.append(error)
        return None
    if errors:
        reading = read(found, labels)
        unread = f"{name}: {problem(found, reading, labels)}" if _is_unread(reading) else None
        errors[:] = [error for error in errors if str(error) != unread]
    return found


def _is_unread(reading: Reading) -> bool:
    return bool(reading.unknown or reading.disputed)


def _kind(error: DataError) -> str:
    if isinstance(error, SizeMismatchError):
        return "size"
    return "damaged" if isinstance(error, DamagedError) else "unreadable"


class _Shared:
    """Histograms that masks share, so that many masks need little memory.

    The checks of `fcn_jax.data.mask_checks` use how many pixels a value has only for masks with
    values that have no label, and which values occur together only for masks of a few values.
    """

    def __init__(self) -> None:
        self._masks: dict[object, Mask] = {}
        self._kept = 0

    def smaller(self, mask: Mask) -> Mask:
        """The same mask with a shared histogram."""
        name, found, reading = mask
        if _is_unread(reading):
            self._kept += len(found.counts)
            if self._kept <= _KEPT_VALUES:
                return mask
            some = (reading.unknown or reading.disputed)[:1]
            found = dataclasses.replace(
                found,
                counts={value: found.counts[value] for value in some},
                colors={value: found.colors[value] for value in some if value in found.colors},
            )
            reading = Reading(reading.rule, {}, *((some, ()) if reading.unknown else ((), some)))
        is_void = {*reading.labels.values()} == {IGNORE_INDEX}
        kind = (found.kind, found.bits, found.flattened, reading.rule, reading.unknown, is_void)
        few = len(found.counts) <= _FEW
        key = (*kind, tuple(found.counts), tuple(found.colors.items())) if few else kind
        if key not in self._masks:
            copied = dataclasses.replace(found, counts=dict(found.counts))
            self._masks[key] = Mask("", copied, reading)
        _, same, shared_reading = self._masks[key]
        if not few:
            dict.update(same.counts, found.counts)  # type: ignore[arg-type]
        return Mask(name, same, shared_reading)
