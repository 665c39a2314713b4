"""Contradictions between the masks of a dataset and its class list, with advice that fits them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.labels.mask_errors import disputed_problem, no_colors, problem
from fcn_jax.data.labels.mask_values import Histogram, Reading
from fcn_jax.data.labels.remap import BACKGROUNDS
from fcn_jax.errors import listing
from fcn_jax.plugins.api import IGNORE_INDEX

_SEVERAL = 5
_SMOOTHED = "edges were smoothed, or the mask was a JPEG or was resized with interpolation"


class Mask(NamedTuple):
    """A mask's name in messages, its stored values, and their labels."""

    name: str
    found: Histogram
    reading: Reading


def unreadable(masks: Sequence[Mask], labels: LabelMap, names: Sequence[str]) -> list[str]:
    """Problems with values and colors that have no label, over all masks.

    Args:
        masks: the masks of all splits.
        labels: the labels of their values and colors.
        names: the names of the classes.

    Returns:
        One line for each problem: the values, the number of masks, the first dozen of files, and
        advice.
    """
    problems = []
    total = len(masks)
    bare = [mask for mask in masks if labels.colors is None and mask.found.kind == "rgb"]
    if bare:
        found = sum((Counter(mask.found.counts) for mask in bare), Counter[int]())
        problems.append(f"{no_colors(found)} ({_where(bare, total)})")
    groups: dict[tuple[str, str], list[Mask]] = {}
    for mask in masks:
        if mask.reading.unknown and not (labels.colors is None and mask.found.kind == "rgb"):
            groups.setdefault((mask.found.kind, mask.reading.rule), []).append(mask)
    problems += [_unknown(group, masks, labels, names) for group in groups.values()]
    known = [mask for mask in masks if not mask.reading.unknown]
    disputed = [mask for mask in known if mask.reading.disputed]
    if disputed:
        values = sorted({value for mask in disputed for value in mask.reading.disputed})
        problems.append(f"{disputed_problem(values)} ({_where(disputed, total)})")
    by_color = [mask for mask in known if mask.reading.rule == "color"]
    by_value = [m for m in known if m.reading.rule == "value" and not m.reading.disputed]
    if labels.colors is not None and by_color and by_value:
        problems.append(
            f"some masks can be read by their colors only ({_where(by_color[:3], total)}) and "
            f"others by their values only ({_where(by_value[:3], total)}); remove the colors from "
            "the list of classes if the values are labels, or convert the masks to one kind"
        )
    return problems


def implausible(
    masks: Sequence[Mask],
    counts: Mapping[str, np.ndarray],
    labels: LabelMap,
    names: Sequence[str],
    training: str | None,
) -> list[str]:
    """Problems with masks that can be read, but whose labels cannot be meant.

    Args:
        masks: the masks of all splits.
        counts: split -> i64[K+1], the number of pixels of each class, and of void.
        labels: the labels of the values and colors.
        names: the names of the classes.
        training: the split that is trained on; None for an evaluation.
    """
    values = {value for mask in masks for value in mask.found.counts}
    listed = listing(map(str, sorted(values)))
    advice = "the value 255 counts as void, not as a class"
    if len(names) == 1 and training is not None:
        in_colors = any(mask.found.kind == "rgb" for mask in masks)
        few = len(values) < _SEVERAL and not in_colors
        also = f", and the masks hold the values {listed}" if few else ""
        return [
            f"'{names[0]}' is the only class{also}: with one class every pixel that counts belongs "
            "to it, and nothing is learned; list the other pixels as a class too, such as "
            f"`background 0 0 0` and `{names[0]} 255 255 255` for masks of black and white"
        ]
    all_gray = all(mask.reading.rule != "color" and mask.found.kind == "gray" for mask in masks)
    if labels.assumed_void and all_gray and len(names) > 1:
        kinds = Counter(frozenset(mask.found.counts) for mask in masks)
        as_255, as_1 = kinds[frozenset({0, IGNORE_INDEX})], kinds[frozenset({0, 1})]
        both = any(found >= {1, IGNORE_INDEX} for found in kinds)
        only_255 = values == {0, IGNORE_INDEX}
        if only_255 or (len(names) == 2 and as_255 and as_1 and not both):
            other = "" if only_255 else f" in {as_255} masks and 0 and 1 in {as_1} others"
            void = (
                " (if 255 is meant as void, say so with the line `void 255 255 255` and the grays "
                "of both)"
            )
            return [
                f"the masks hold the values 0 and 255{other}, and {advice}: every pixel of "
                f"'{names[1]}' would be ignored; give the classes their grays as colors in the "
                f"list, as in `{names[0]} 0 0 0` and `{names[1]} 255 255 255`, or set "
                f"data.label_map = {{255 = 1}}{'' if only_255 else void}"
            ]
    if training is None:
        return []
    problems = [
        f"all pixels of {split} are void, so that nothing counts there; {listing(names, 3)} have "
        "none"
        for split, pixels in counts.items()
        if pixels.sum() and not pixels[:-1].sum()
    ]
    present = np.flatnonzero(counts[training][:-1])
    if len(present) == 1 and counts[training][-1] and not problems:
        is_255 = labels.assumed_void and IGNORE_INDEX in values
        said = (
            f"{training} holds '{names[int(present[0])]}' and void only, so that nothing is "
            f"learned; its masks hold the values {listed}{f', and {advice}' if is_255 else ''}"
        )
        if labels.assumed_void and labels.listed and all_gray and len(values) == len(names):
            lines = _lines(names, sorted(values))
            said += (
                "; if 255 is a class, give each class its value in the list, as in "
                f"{' and '.join(lines[:_SEVERAL])}"
            )
        problems.append(said)
    return problems


def doubts(masks: Sequence[Mask], names: Sequence[str]) -> list[str]:
    """Notes on masks that can be read, but may be meant otherwise.

    Args:
        masks: the masks of all splits.
        names: the names of the classes.
    """
    values = {value for mask in masks for value in mask.found.counts} - {IGNORE_INDEX}
    backgrounds = [name for name in names if name.lower().strip("_") in BACKGROUNDS]
    if len(backgrounds) > 1 and values == set(range(len(names) - 1)):
        return [
            f"{listing(backgrounds)} may be one class that is listed twice: the masks hold 0 to "
            f"{len(names) - 2}, {len(names) - 1} values for {len(names)} classes, so that labels "
            f"may be shifted by one and '{names[-1]}' has no pixel; if so, remove one from the list"
        ]
    return []


def _where(masks: Sequence[Mask], total: int) -> str:
    return f"in {len(masks)} of {total} masks: {listing(mask.name for mask in masks)}"


def _lines(names: Sequence[str], values: Sequence[int], repeats: int = 1) -> list[str]:
    """Lines of a class list, with each class's value, or three times as a gray."""
    return [
        f"`{' '.join([name, *[str(value)] * repeats])}`"
        for name, value in zip(names, values, strict=False)
    ]


def _unknown(
    group: Sequence[Mask], masks: Sequence[Mask], labels: LabelMap, names: Sequence[str]
) -> str:
    """One line on the unknown values or colors of masks of one kind."""
    kind, rule = group[0].found.kind, group[0].reading.rule
    # As if one mask held all of them.
    counts: Counter[int] = Counter()
    unknown: set[int] = set()
    for mask in group:
        codes = mask.found.colors if rule == "color" else {}
        for value, count in mask.found.counts.items():
            counts[codes.get(value, value)] += count
        unknown |= {codes.get(value, value) for value in mask.reading.unknown}
    colors = {code: code for code in counts} if rule == "color" and kind == "indexed" else {}
    joined = Histogram(kind if rule == "color" else "gray", dict(counts), colors)
    said = problem(joined, Reading(rule, {}, tuple(sorted(unknown))), labels)
    hint = _hint(joined, unknown, masks, labels, names)
    return f"{said}{f' ({hint})' if hint else ''} ({_where(group, len(masks))})"


def _hint(
    joined: Histogram,
    unknown: set[int],
    masks: Sequence[Mask],
    labels: LabelMap,
    names: Sequence[str],
) -> str:
    """The usual cause of such unknown values, with advice; empty if there is no usual one."""
    common = sum(count for _, count in Counter(joined.counts).most_common(len(names) + 1))
    smoothed = len(unknown) > _SEVERAL and 2 * common > sum(joined.counts.values())
    if joined.kind != "gray":
        known = {red << 16 | green << 8 | blue for red, green, blue in labels.colors or {}}
        swapped = {(code & 255) << 16 | code & 0xFF00 | code >> 16 for code in unknown}
        if swapped <= known:
            return "red and blue are swapped: the masks were written as BGR"
        if not known & joined.counts.keys():
            return (
                "none of the colors is in the list: it is the list of another dataset, or the "
                "index is the label"
            )
        return f"they are few pixels of many colors: {_SMOOTHED}" if smoothed else ""
    values = {v for mask in masks if mask.found.kind != "rgb" for v in mask.found.counts}
    classes = sorted(value for value, label in labels.values.items() if label != IGNORE_INDEX)
    count = len(classes)
    plain = classes == list(range(count))
    # Grays of 16 bits that 8 bits can hold too.
    scale = 257 if max(values) > 255 and all(value % 257 == 0 for value in values) else 1
    grays = sorted(value // scale for value in values)
    if plain and values - {IGNORE_INDEX} == set(range(count + 1)):
        return (
            f"the masks hold 0 to {count}, {count + 1} values for {count} classes: the list may "
            "lack the background; if it is the value 0, add it as the first line, or, to ignore "
            "it, set data.reduce_zero_label = true"
        )
    if plain and values - {IGNORE_INDEX} == set(range(1, count + 1)):
        return (
            "the masks count from 1: if no pixel is 0, add `void` as the first line, or set "
            "data.reduce_zero_label = true"
        )
    if len(values) == count and grays[-1] <= 255:
        lines = _lines(names, grays, 3)
        return (
            "as many gray values as classes: if they are the classes in order, list "
            f"{', '.join(lines[:_SEVERAL])}"
        )
    has_void = plain and labels.assumed_void and IGNORE_INDEX in values
    if has_void and len(values) == count + 1 <= _SEVERAL:
        return (
            f"{len(values)} gray values for {count} classes: give each class its value in the "
            f"list, as in {', '.join(_lines(names, sorted(values)))} with 255 as void; or, if "
            "255 is a class too, add it with its name, as in `NAME 255`"
        )
    if smoothed:
        black_white = joined.counts.keys() >= {0, IGNORE_INDEX}
        white = (
            "; 255 counts as void unless the list has the grays as colors, as in "
            f"`{names[-1]} 255 255 255`"
        )
        also = white if labels.assumed_void and labels.colors is None and black_white else ""
        return f"they are few pixels of many values: {_SMOOTHED}{also}"
    if len(unknown) > _SEVERAL and len(values) > count + _SEVERAL:
        return "so many values look like a photograph or a probability map, not like labels"
    return ""
