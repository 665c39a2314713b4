"""An inspection of the masks before training: their values, compared with the class list.

Contradictions are errors, and oddities are notes of one line each.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from fcn_jax.data import mask_checks
from fcn_jax.data.contents import name_of, read_bytes
from fcn_jax.data.decode import read_stored_mask
from fcn_jax.data.labels.label_map import LabelMap, as_label_map
from fcn_jax.data.labels.mask_labels import read
from fcn_jax.data.labels.mask_values import Histogram, StoredMask, histogram
from fcn_jax.data.mask_cache import MaskCache, digest
from fcn_jax.data.mask_checks import Mask
from fcn_jax.data.source import Source
from fcn_jax.data.threads import on_threads
from fcn_jax.errors import DataError, listing
from fcn_jax.plugins.api import IGNORE_INDEX, Record
from fcn_jax.runtime.progress import Progress

_MAX_DECODED = 2000
"""Images of a split that are inspected if only whole images can be decoded, which takes long."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """The contents of the masks.

    Attributes:
        counts: split -> i64[K+1], the number of pixels of each class, and of void.
        image_counts: split -> i64[K], the number of labeled pixels of the masks in which each class
            occurs.
        notes: oddities, one line each.
    """

    counts: Mapping[str, np.ndarray]
    image_counts: Mapping[str, np.ndarray]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Seen:
    """One mask: its histogram, or the problem that it has; `skipped` if training skips it too."""

    name: str
    histogram: Histogram | None = None
    digest: str = ""
    problem: str = ""
    skipped: bool = False


def inspect(
    splits: Mapping[str, Source],
    *,
    training: str | None = None,
    skip: tuple[type[DataError], ...] = (),
    stream: TextIO | None = None,
) -> Findings:
    """Inspect all masks of the splits.

    If a source has `labels`, its masks are read as `fcn_jax.data.decode.decode_record` reads them,
    without their images, and cached. From any other source whole images are decoded: of more than
    2,000 in a split, every n-th one.

    Args:
        splits: sources by the name of their split, all of one dataset.
        training: the split that is trained on. None is for an evaluation: then everything that can
            be scored is valid, and there are no notes on what the scores show.
        skip: errors of a record for which the record is skipped and counted in a note, because
            training skips it too.
        stream: where progress is shown; standard error by default.

    Returns:
        The number of pixels of each class, and the notes.

    Raises:
        DataError: masks are missing or damaged, hold values or colors that no class has, or
            contradict the class list. The message is one line with all problems, and names the
            first dozen of files.
    """
    with Progress("reading masks", sum(map(len, splits.values())), stream=stream) as progress:
        seen = {split: _read_masks(source, skip, progress) for split, source in splits.items()}
    first = next(iter(splits.values()))
    names, labels = first.classes.names, first.labels or as_label_map(len(first.classes))
    masks = {
        split: [
            Mask(mask.name, mask.histogram, read(mask.histogram, source.labels or labels))
            for mask in seen[split]
            if mask.histogram is not None
        ]
        for split, source in splits.items()
    }
    every = [mask for of_split in masks.values() for mask in of_split]
    each = {
        split: [class_pixels(mask, len(names)) for mask in of_split]
        for split, of_split in masks.items()
    }
    none = np.zeros(len(names) + 1, np.int64)
    counts = {split: sum(pixels, start=none) for split, pixels in each.items()}
    image_counts = {
        split: sum(((of[:-1] > 0) * of[:-1].sum() for of in pixels), start=none[:-1])
        for split, pixels in each.items()
    }
    problems = mask_checks.unreadable(every, labels, names)
    # The color of a class does not matter before there are two classes.
    if every and (not problems or (len(names) == 1 and training is not None)):
        problems = mask_checks.implausible(every, counts, labels, names, training)
    if problems:
        problems[0] = f"the masks and the classes do not belong together: {problems[0]}"
    problems = [*_broken(seen), *problems]
    if problems:
        raise DataError("; ".join(problems))
    notes = [note for split in splits for note in _skip_notes(split, seen[split], splits[split])]
    notes += reading_notes(every, labels)
    if training is not None:
        notes += mask_checks.doubts(every, names)
        for split in splits:
            notes += split_notes(split, counts[split], masks[split], names)
        notes += _common_class_notes(counts, training)
    return Findings(counts, image_counts, tuple(notes))


# ------------------------------------------------------------------------------------------ reading


def _read_masks(
    source: Source, skip: tuple[type[DataError], ...], progress: Progress
) -> list[_Seen]:
    """Read the masks in order, on threads, and report to `progress`."""
    cache = None if source.labels is None else MaskCache(source)
    step = -(-len(source) // _MAX_DECODED) if cache is None else 1

    def one(index: int) -> _Seen:
        record = source[index]
        name = name_of(record.mask, f"mask of {record.id}")
        try:
            if cache is not None:
                return _stored(record, name, cache)
            mask = np.ascontiguousarray(source.decode(record).mask)
            return _Seen(name, histogram(StoredMask(mask)))
        except DataError as error:
            return _Seen(name, problem=str(error), skipped=isinstance(error, skip))

    masks = on_threads(one, range(0, len(source), step), lambda *_: progress.advance(step))
    if cache is not None:
        cache.keep((mask.digest, mask.histogram) for mask in masks if mask.histogram is not None)
    return masks


def _stored(record: Record, name: str, cache: MaskCache) -> _Seen:
    image = record.image
    if isinstance(image, Path) and not (os.path.isfile(image) and os.path.getsize(image)):
        read_bytes(image, str(image))  # raises the error for missing and empty files
    data = read_bytes(record.mask, name)
    key = digest(data)
    return _Seen(name, cache.known.get(key) or histogram(read_stored_mask(data, name=name)), key)


# ----------------------------------------------------------------------------- problems and notes


def _broken(seen: Mapping[str, Sequence[_Seen]]) -> list[str]:
    every = [mask for masks in seen.values() for mask in masks]
    problems = list(dict.fromkeys(m.problem for m in every if m.problem and not m.skipped))
    if not problems:
        return []
    count = f"{len(problems)} masks or images are not usable: " if len(problems) > 1 else ""
    return [count + listing(problems, separator="; ")]


def class_pixels(mask: Mask, num_classes: int) -> np.ndarray:
    """i64[K+1], the number of pixels of each class, and of void."""
    pixels = np.zeros(num_classes + 1, np.int64)
    for value, label in mask.reading.labels.items():
        pixels[num_classes if label == IGNORE_INDEX else label] += mask.found.counts[value]
    return pixels


def _skip_notes(split: str, seen: Sequence[_Seen], source: Source) -> list[str]:
    notes = []
    skipped = [mask.problem for mask in seen if mask.skipped]
    if skipped:
        shown = listing(skipped, 3, "; ")
        notes.append(f"{split}: {len(skipped)} of {len(source)} images are skipped: {shown}")
    if len(skipped) == len(seen):
        raise DataError(f"{split}: all {len(source)} images would be skipped: {skipped[0]}")
    if len(seen) < len(source):
        notes.append(f"{split}: inspected {len(seen)} of {len(source)} masks, spread evenly")
    return notes


def reading_notes(masks: Sequence[Mask], labels: LabelMap) -> list[str]:
    """Notes on masks that are read by another rule than the class list suggests."""
    by_value = [mask.found.kind for mask in masks if mask.reading.rule == "value"]
    gray, indexed = by_value.count("gray"), by_value.count("indexed")
    flattened = sum(mask.found.flattened for mask in masks)
    notes = []
    if labels.colors is not None and labels.listed and gray:
        notes.append(
            f"the list of classes has colors, but {gray} masks hold gray values that are not among "
            "its colors: the values are labels"
        )
    if labels.colors is not None and indexed:
        notes.append(
            f"{indexed} masks hold palette indices without a color of their own (the palette ends "
            "before them, or repeats a color): the indices are labels"
        )
    if flattened:
        notes.append(f"{flattened} masks are RGB with equal channels and are read as gray")
    return notes


def split_notes(
    split: str, pixels: np.ndarray, masks: Sequence[Mask], names: Sequence[str]
) -> list[str]:
    """Notes on the labels of a split: absent classes, much void, masks that are all void.

    Args:
        split: its name.
        pixels: i64[K+1], the number of pixels of each class, and of void.
        masks: its masks.
        names: the names of the classes.
    """
    notes = []
    absent = [name for name, count in zip(names, pixels.tolist(), strict=False) if not count]
    if len(absent) == len(names) - 1:
        only = next(name for name in names if name not in absent)
        notes.append(f"all pixels that count are '{only}'; no other class has any")
    elif absent:
        notes.append(f"{len(absent)} of {len(names)} classes have no pixel: {listing(absent)}")
    void = pixels[-1] / max(1, pixels.sum())
    if void > 0.5:
        notes.append(f"{void:.0%} of the pixels are void")
    empty = [mask.name for mask in masks if {*mask.reading.labels.values()} == {IGNORE_INDEX}]
    if empty:
        notes.append(f"{len(empty)} of {len(masks)} masks are all void: {listing(empty, 3)}")
    return [f"{split}: {note}" for note in notes]


def _common_class_notes(counts: Mapping[str, np.ndarray], training: str) -> list[str]:
    notes = []
    for split in counts:
        here, there = counts[split][:-1] > 0, counts[training][:-1] > 0
        if split != training and here.any() and there.any() and not (here & there).any():
            notes.append(f"{training} and {split} have no class in common")
    return notes
