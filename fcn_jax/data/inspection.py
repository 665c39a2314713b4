"""A look over the masks before training: what is in them, compared with what the classes say.

Contradictions are refused, and oddities are said in one line each. What each mask holds is
remembered by the contents of its file, in the folder `masks` of the cache
(`fcn_jax.runtime.cache`), so that a second look only reads the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import numpy as np

from fcn_jax.data.decode import read_image, read_stored_mask
from fcn_jax.data.labels import label_map as label_rules
from fcn_jax.data.labels.label_map import Histogram, LabelMap, Reading
from fcn_jax.data.progress import PassProgress
from fcn_jax.errors import DataError, WriteError, listing
from fcn_jax.plugins.api import IGNORE_INDEX, Record, Source
from fcn_jax.runtime import cache, json_text
from fcn_jax.runtime.atomic import write_text

_VERSION = 2
"""Of the cache's files; to be raised when `read_stored_mask` reads other values from the same file."""

_MOST_REMEMBERED = 256
"""Distinct values of a mask up to which it is remembered. More are smoothed edges or no labels at all."""

_MOST_DECODED = 2000
"""Images of a split that are looked at where only whole images can be decoded, which takes much longer than masks alone."""

_SEVERAL = 5


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the masks hold.

    Attributes:
        counts: split -> i64[K+1], pixels of each class, and of void.
        notes: oddities, a line each.
    """

    counts: Mapping[str, np.ndarray]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Looked:
    """One mask: its histogram, or why there is none, and whether it is left out for that."""

    name: str
    histogram: Histogram | None
    problem: str = ""
    skipped: bool = False


def inspect(
    splits: Mapping[str, Source],
    *,
    training: str | None = None,
    skip: tuple[type[DataError], ...] = (),
    stream: TextIO | None = None,
) -> Findings:
    """Look over all masks of the splits.

    A source that has `labels`, a `fcn_jax.data.labels.label_map.LabelMap`, has masks that
    `fcn_jax.data.decode.decode_record` reads with it; they are read without their images and
    remembered. From any other source whole images are decoded, of more than 2,000 in a split every
    n-th.

    Args:
        splits: sources by the name of their split, all of one dataset.
        training: the split that is trained on. None is for evaluation alone: whatever can be scored
            is then no contradiction, and oddities that the scores show are no notes.
        skip: errors of a record for which it is left out and counted in a note, because training
            leaves it out as well.
        stream: where progress is shown; standard error by default.

    Returns:
        Pixels by class, and the oddities.

    Raises:
        DataError: masks are missing or damaged, hold values or colors that no class has, or
            contradict the classes: it is one line with all that is wrong, and names the first dozen
            of files.
    """
    looked: dict[str, list[_Looked]] = {}
    with PassProgress("reading masks", sum(map(len, splits.values())), stream) as progress:
        for split, source in splits.items():
            looked[split] = list(_look(source, skip, progress))
    maps = {split: _labels_of(source) for split, source in splits.items()}
    notes: list[str] = []
    readings: dict[str, list[tuple[_Looked, Reading]]] = {}
    for split, masks in looked.items():
        rules = maps[split] or label_rules.plain_labels(len(splits[split].classes))
        readings[split] = [
            (mask, label_rules.read(mask.histogram, rules))
            for mask in masks
            if mask.histogram is not None
        ]
    first = next(iter(splits.values()))
    rules = next(iter(maps.values())) or label_rules.plain_labels(len(first.classes))
    names = first.classes.names
    everything = [pair for pairs in readings.values() for pair in pairs]
    problems = _misread(everything, rules, names)
    counts = {split: _count(pairs, len(names)) for split, pairs in readings.items()}
    # What one class is listed as does not matter before there are two.
    if everything and (not problems or (len(names) == 1 and training is not None)):
        problems = _impossible(everything, counts, rules, names, training)
    if problems:
        problems[0] = f"the masks and the classes do not belong together: {problems[0]}"
    broken = _broken(looked)
    if broken or problems:
        raise DataError("; ".join([*broken, *problems]))
    for split, source in splits.items():
        skipped = [mask.problem for mask in looked[split] if mask.skipped]
        if skipped:
            notes.append(
                f"{split}: {len(skipped)} of {len(source)} images are left out: {'; '.join(skipped[:3])}{' and so on' * (len(skipped) > 3)}"
            )
        if len(skipped) == len(looked[split]):
            raise DataError(f"{split}: all {len(source)} images would be left out: {skipped[0]}")
        if len(looked[split]) < len(source):
            notes.append(
                f"{split}: looked at {len(looked[split])} of {len(source)} masks, spread evenly"
            )
    notes += _reading_notes(everything, rules)
    if training is not None:
        for split, pixels in counts.items():
            notes += _split_notes(split, pixels, readings[split], names)
        notes += _overlap_notes(splits, counts, training)
    return Findings(counts, tuple(notes))


def _labels_of(source: Source) -> LabelMap | None:
    labels = getattr(source, "labels", None)
    return labels if isinstance(labels, LabelMap) else None


# Looking


def _look(
    source: Source, skip: tuple[type[DataError], ...], progress: PassProgress
) -> Iterator[_Looked]:
    """What each mask holds, in order; reports to `progress`."""
    whole = _labels_of(source) is None
    step = -(-len(source) // _MOST_DECODED) if whole else 1
    indices = range(0, len(source), step)
    memory = None if whole else _Memory(source)

    def one(index: int) -> tuple[_Looked, str]:
        record = source[index]
        try:
            return (_decoded(source, record), "") if memory is None else _stored(record, memory)
        except DataError as error:
            return _Looked(_mask_name(record), None, str(error), isinstance(error, skip)), ""

    digests = []
    executor = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        # In portions, so that what is done is known and an interruption waits for few.
        for start in range(0, len(indices), 256):
            for looked, digest in executor.map(one, indices[start : start + 256]):
                progress.advance(step)
                digests.append((digest, looked))
                yield looked
    finally:
        executor.shutdown(cancel_futures=True)
    if memory is not None:
        memory.keep(digests)


def _mask_name(record: Record) -> str:
    return str(record.mask) if isinstance(record.mask, Path) else f"mask of {record.id}"


def _stored(record: Record, memory: _Memory) -> tuple[_Looked, str]:
    name = _mask_name(record)
    try:
        if isinstance(record.image, Path):
            record.image.stat()
        data = record.mask.read_bytes() if isinstance(record.mask, Path) else record.mask
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: the file does not exist (or is a link that leads nowhere)"
        ) from error
    except OSError as error:
        raise DataError(
            f"{error.filename or name}: cannot read the file ({error.strerror})"
        ) from error
    if isinstance(record.image, Path) and not record.image.stat().st_size:
        read_image(record.image)  # which raises the error for empty files
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    known = memory.get(digest)
    found = known or label_rules.histogram(read_stored_mask(data, name=name))
    return _Looked(name, found), digest


def _decoded(source: Source, record: Record) -> _Looked:
    mask = source.decode(record).mask
    return _Looked(
        _mask_name(record),
        label_rules.histogram(label_rules.StoredMask(np.ascontiguousarray(mask))),
    )


class _Memory:
    """Histograms by the contents of their masks' files, in one file of the cache for each split.

    The file begins with the digest of the rest. One that is damaged, or of another version, counts
    as none. Processes that write it at once replace it whole, one after the other.
    """

    def __init__(self, source: Source) -> None:
        first, last = source[0], source[len(source) - 1]
        where = [
            str(Path(r.mask).resolve()) if isinstance(r.mask, Path) else r.id for r in (first, last)
        ]
        key = hashlib.blake2b(
            json_text.dumps([where, len(source)]).encode(), digest_size=16
        ).hexdigest()
        self._path = cache.folder() / "masks" / f"{key}.txt"
        self._known = self._read()

    def _read(self) -> dict[str, Histogram]:
        try:
            checksum, _, text = self._path.read_text(encoding="utf-8").partition("\n")
            if checksum != _digest(text):
                return {}
            content = json.loads(text)
            if content["version"] != _VERSION:
                return {}
            return {digest: _unpacked(packed) for digest, packed in content["masks"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def get(self, digest: str) -> Histogram | None:
        """What the mask with these contents holds, if it is known."""
        return self._known.get(digest)

    def keep(self, looked: Iterable[tuple[str, _Looked]]) -> None:
        """Remember these masks, and no others."""
        wanted = {
            digest: mask.histogram
            for digest, mask in looked
            if digest
            and mask.histogram is not None
            and len(mask.histogram.counts) <= _MOST_REMEMBERED
        }
        if wanted.keys() == self._known.keys():
            return
        packed = {digest: _packed(histogram) for digest, histogram in wanted.items()}
        text = json_text.dumps({"version": _VERSION, "masks": packed})
        try:
            write_text(self._path, f"{_digest(text)}\n{text}")
        except WriteError:
            return  # the next look takes as long as this one; nothing else is lost


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _packed(found: Histogram) -> list[object]:
    colors = [found.colors[value] for value in found.counts] if found.colors else []
    return [
        found.kind,
        int(found.flattened),
        list(found.counts),
        list(found.counts.values()),
        colors,
        found.bits,
    ]


def _unpacked(packed: Sequence[object]) -> Histogram:
    kind, flattened, values, counts, colors, bits = packed
    if kind not in ("gray", "indexed", "rgb") or not (
        isinstance(values, list)
        and isinstance(counts, list)
        and isinstance(colors, list)
        and isinstance(bits, int)
    ):
        raise ValueError("no histogram")
    of_values = dict(zip(values, colors, strict=True)) if colors else {}
    return Histogram(kind, dict(zip(values, counts, strict=True)), of_values, bool(flattened), bits)


# What cannot be


def _broken(looked: Mapping[str, Sequence[_Looked]]) -> list[str]:
    problems = list(
        dict.fromkeys(
            mask.problem
            for masks in looked.values()
            for mask in masks
            if mask.problem and not mask.skipped
        )
    )
    if not problems:
        return []
    more = f" and {len(problems) - 12} more" if len(problems) > 12 else ""
    count = f"{len(problems)} masks or images are not usable: " if len(problems) > 1 else ""
    return [count + "; ".join(problems[:12]) + more]


def _where(masks: Sequence[_Looked], total: int) -> str:
    return f"in {len(masks)} of {total} masks: {listing(mask.name for mask in masks)}"


def _misread(
    pairs: Sequence[tuple[_Looked, Reading]], rules: LabelMap, names: Sequence[str]
) -> list[str]:
    """Values and colors that have no label, over all masks."""
    problems = []
    total = len(pairs)
    bare = (
        [mask for mask, _ in pairs if mask.histogram is not None and mask.histogram.kind == "rgb"]
        if rules.colors is None
        else []
    )
    if bare:
        problems.append(f"{label_rules.NO_COLORS} ({_where(bare, total)})")
    groups: dict[tuple[str, str], list[tuple[_Looked, Reading]]] = {}
    for mask, reading in pairs:
        if (
            reading.unknown
            and mask.histogram is not None
            and not (rules.colors is None and mask.histogram.kind == "rgb")
        ):
            groups.setdefault((mask.histogram.kind, reading.rule), []).append((mask, reading))
    for group in groups.values():
        problems.append(_unknown(group, total, pairs, rules, names))
    disputed = [
        (mask, reading) for mask, reading in pairs if reading.disputed and not reading.unknown
    ]
    if disputed:
        values = sorted({value for _, reading in disputed for value in reading.disputed})
        problems.append(
            f"{label_rules.disputed_problem(values)} ({_where([mask for mask, _ in disputed], total)})"
        )
    by_color = [mask for mask, reading in pairs if reading.rule == "color" and not reading.unknown]
    by_value = [
        mask
        for mask, reading in pairs
        if reading.rule == "value" and not reading.unknown and not reading.disputed
    ]
    if rules.colors is not None and by_color and by_value:
        problems.append(
            f"some masks can be read by their colors only ({_where(by_color[:3], total)}) and others by their values only "
            f"({_where(by_value[:3], total)}); take the colors off the list of classes if the values are labels, or convert "
            "the masks to one kind"
        )
    return problems


def _unknown(
    group: Sequence[tuple[_Looked, Reading]],
    total: int,
    pairs: Sequence[tuple[_Looked, Reading]],
    rules: LabelMap,
    names: Sequence[str],
) -> str:
    """One line on the values or colors that masks of one kind hold and no class has, with advice that fits them."""
    first, reading = group[0]
    found = first.histogram
    assert found is not None
    # As if one mask held all of them.
    counts: Counter[int] = Counter()
    colors: dict[int, int] = {}
    unknown: set[int] = set()
    for mask, read in group:
        histogram = mask.histogram
        assert histogram is not None
        values = histogram.colors if reading.rule == "color" else {}
        for value, count in histogram.counts.items():
            counts[values.get(value, value)] += count
        unknown |= {values.get(value, value) for value in read.unknown}
        colors |= {code: code for code in values.values()}
    joined = Histogram(found.kind if reading.rule == "color" else "gray", dict(counts), colors)
    said = label_rules.problem(joined, Reading(reading.rule, {}, tuple(sorted(unknown))), rules)
    hint = _hint(joined, unknown, pairs, rules, names)
    return f"{said}{f' ({hint})' if hint else ''} ({_where([mask for mask, _ in group], total)})"


def _hint(
    joined: Histogram,
    unknown: set[int],
    pairs: Sequence[tuple[_Looked, Reading]],
    rules: LabelMap,
    names: Sequence[str],
) -> str:
    """What such values usually mean."""
    common = sum(count for _, count in Counter(joined.counts).most_common(len(names) + 1))
    smoothed = len(unknown) > _SEVERAL and 2 * common > sum(joined.counts.values())
    if joined.kind != "gray":
        known = {red << 16 | green << 8 | blue for red, green, blue in rules.colors or {}}
        swapped = {(code & 255) << 16 | code & 0xFF00 | code >> 16 for code in unknown}
        if swapped <= known:
            return "red and blue are swapped: the masks were written as BGR"
        if not known & joined.counts.keys():
            return "none of the colors is in the list: it is the list of another dataset, or the index is the label"
        if smoothed:
            return "they are few pixels of many colors: edges were smoothed, or the mask was a JPEG or was resized with interpolation"
        return ""
    stored = [
        mask.histogram
        for mask, _ in pairs
        if mask.histogram is not None and mask.histogram.kind != "rgb"
    ]
    values = {value for found in stored for value in found.counts}
    black_white = (
        rules.assumed_void and rules.colors is None and joined.counts.keys() >= {0, IGNORE_INDEX}
    )
    classes = sorted(value for value, label in rules.values.items() if label != IGNORE_INDEX)
    plain = classes == list(range(len(classes)))
    # Grays of 16 bits that 8 bits hold too.
    scale = 257 if max(values) > 255 and all(value % 257 == 0 for value in values) else 1
    grays = sorted(value // scale for value in values)
    lines = [f"`{name} {value} {value} {value}`" for name, value in zip(names, grays, strict=False)]
    if plain and values - {IGNORE_INDEX} == set(range(len(classes) + 1)):
        return (
            f"the masks hold 0 to {len(classes)}, {len(classes) + 1} values for {len(classes)} classes: the list may lack the "
            "background; if it is the value 0, add it as the first line"
        )
    if plain and values - {IGNORE_INDEX} == set(range(1, len(classes) + 1)):
        return "the masks count from 1: if no pixel is 0, add `void` as the first line"
    if len(values) == len(classes) and grays[-1] <= 255:
        return f"as many gray values as classes: if they are the classes in order, list {', '.join(lines[:_SEVERAL])}"
    if (
        plain
        and rules.assumed_void
        and IGNORE_INDEX in values
        and len(values) == len(classes) + 1
        and len(values) <= _SEVERAL
    ):
        numbered = [f"`{name} {value}`" for name, value in zip(names, sorted(values), strict=False)]
        return (
            f"{len(values)} gray values for {len(classes)} classes: give each class its value in the list, as in "
            f"{', '.join(numbered)} with 255 as void; or list what 255 is as a class, too, and void by name, as in `void 255`"
        )
    if smoothed:
        white = (
            f"; 255 counts as void unless the list has the grays as colors, as in `{names[-1]} 255 255 255`"
            if black_white
            else ""
        )
        return f"they are few pixels of many values: edges were smoothed, or the mask was a JPEG or was resized with interpolation{white}"
    if len(unknown) > _SEVERAL and len(values) > len(classes) + _SEVERAL:
        return "so many values look like a photograph or a probability map, not like labels"
    return ""


def _impossible(
    pairs: Sequence[tuple[_Looked, Reading]],
    counts: Mapping[str, np.ndarray],
    rules: LabelMap,
    names: Sequence[str],
    training: str | None,
) -> list[str]:
    """What can be read, and cannot be meant."""
    problems = []
    values = {
        value for mask, _ in pairs if mask.histogram is not None for value in mask.histogram.counts
    }
    advice = "the value 255 counts as void, not as a class"
    if len(names) == 1 and training is not None:
        in_colors = any(
            mask.histogram is not None and mask.histogram.kind == "rgb" for mask, _ in pairs
        )
        few = len(values) < _SEVERAL and not in_colors
        also = f", and the masks hold the values {listing(map(str, sorted(values)))}" if few else ""
        return [
            f"'{names[0]}' is the only class{also}: with one class every pixel that counts belongs to it, and nothing is learned; list "
            f"what is not {names[0]} as a class too, such as `background 0 0 0` and `{names[0]} 255 255 255` for masks of black and white"
        ]
    gray = [
        mask.histogram
        for mask, reading in pairs
        if mask.histogram is not None and reading.rule != "color" and mask.histogram.kind == "gray"
    ]
    if rules.assumed_void and gray and len(gray) == len(pairs) and len(names) > 1:
        kinds = Counter(_binary(found) for found in gray)
        if values == {0, IGNORE_INDEX} or (
            len(names) == 2 and kinds["0/255"] and kinds["0/1"] and not kinds["both"]
        ):
            other = (
                ""
                if values == {0, IGNORE_INDEX}
                else f" in {kinds['0/255']} masks and 0 and 1 in {kinds['0/1']} others"
            )
            return [
                f"the masks hold the values 0 and 255{other}, and {advice}: every pixel of '{names[1]}' would be left out; give the "
                f"classes their grays as colors in the list, as in `{names[0]} 0 0 0` and `{names[1]} 255 255 255`, or convert 255 to 1"
                + (
                    " (if 255 is meant as void, say so with the line `void 255 255 255` and the grays of both)"
                    if other
                    else ""
                )
            ]
    if training is None:
        return []
    for split, pixels in counts.items():
        if pixels.sum() and not pixels[:-1].sum():
            problems.append(
                f"all pixels of {split} are void, so that nothing counts there; {listing(names, 3)} have none"
            )
    present = np.flatnonzero(counts[training][:-1])
    if len(present) == 1 and counts[training][-1] and not problems:
        problems.append(
            f"{training} holds '{names[int(present[0])]}' and void only, so that nothing is learned; its masks hold the values "
            f"{listing(map(str, sorted(values)))}"
            + (f", and {advice}" if rules.assumed_void and IGNORE_INDEX in values else "")
        )
        if (
            rules.assumed_void
            and rules.listed
            and gray
            and len(gray) == len(pairs)
            and len(values) == len(names)
        ):
            lines = [f"`{name} {value}`" for name, value in zip(names, sorted(values), strict=True)]
            problems[-1] += (
                f"; if 255 is a class, give each class its value in the list, as in {' and '.join(lines[:_SEVERAL])}"
            )
    return problems


def _binary(found: Histogram) -> str:
    """Whether a gray mask holds foreground as 1, as 255, or both."""
    values = set(found.counts)
    if {1, IGNORE_INDEX} <= values:
        return "both"
    return {frozenset({0, IGNORE_INDEX}): "0/255", frozenset({0, 1}): "0/1"}.get(
        frozenset(values), ""
    )


# What is odd


def _count(pairs: Sequence[tuple[_Looked, Reading]], num_classes: int) -> np.ndarray:
    pixels = np.zeros(num_classes + 1, np.int64)
    for mask, reading in pairs:
        assert mask.histogram is not None
        for value, label in reading.labels.items():
            pixels[num_classes if label == IGNORE_INDEX else label] += mask.histogram.counts[value]
    return pixels


def _reading_notes(pairs: Sequence[tuple[_Looked, Reading]], rules: LabelMap) -> list[str]:
    notes = []
    by_value = Counter(
        mask.histogram.kind
        for mask, reading in pairs
        if mask.histogram is not None and reading.rule == "value"
    )
    if rules.colors is not None and rules.listed and by_value["gray"]:
        notes.append(
            f"the list of classes has colors, but {by_value['gray']} masks hold gray values that are no colors of it: the values are "
            "labels"
        )
    if rules.colors is not None and by_value["indexed"]:
        notes.append(
            f"{by_value['indexed']} masks hold palette indices without a color of their own (the palette ends before them, or repeats "
            "a color): the indices are labels"
        )
    flattened = sum(mask.histogram is not None and mask.histogram.flattened for mask, _ in pairs)
    if flattened:
        notes.append(f"{flattened} masks are RGB with equal channels and are read as gray")
    return notes


def _split_notes(
    split: str, pixels: np.ndarray, pairs: Sequence[tuple[_Looked, Reading]], names: Sequence[str]
) -> list[str]:
    notes = []
    absent = [name for name, count in zip(names, pixels.tolist(), strict=False) if not count]
    if len(absent) == len(names) - 1:
        only = next(name for name in names if name not in absent)
        notes.append(f"{split}: all pixels that count are '{only}'; no other class has any")
    elif absent:
        notes.append(
            f"{split}: {len(absent)} of {len(names)} classes have no pixel: {listing(absent)}"
        )
    void = pixels[-1] / max(1, pixels.sum())
    if void > 0.5:
        notes.append(f"{split}: {void:.0%} of the pixels are void")
    empty = [
        mask.name
        for mask, reading in pairs
        if reading.labels and set(reading.labels.values()) == {IGNORE_INDEX}
    ]
    if empty:
        notes.append(
            f"{split}: {len(empty)} of {len(pairs)} masks are void throughout: {listing(empty, 3)}"
        )
    return notes


def _overlap_notes(
    splits: Mapping[str, Source], counts: Mapping[str, np.ndarray], training: str
) -> list[str]:
    notes = []
    trained = {_identity(record) for record in _records(splits[training])}
    for split, source in splits.items():
        if split == training:
            continue
        common = [record.id for record in _records(source) if _identity(record) in trained]
        if common:
            notes.append(
                f"{len(common)} of {len(source)} images of {split} are in {training} too: {listing(common, 3)}"
            )
        here, there = counts[split][:-1] > 0, counts[training][:-1] > 0
        if here.any() and there.any() and not (here & there).any():
            notes.append(f"{training} and {split} have no class in common")
    return notes


def _records(source: Source) -> Iterator[Record]:
    return (source[index] for index in range(len(source)))


def _identity(record: Record) -> Path | bytes | str:
    if isinstance(record.image, Path):
        return record.image
    return hashlib.blake2b(record.image, digest_size=16).digest()
