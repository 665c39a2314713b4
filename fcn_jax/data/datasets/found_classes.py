"""Classes of masks without a class list: the values or colors that they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fcn_jax.data.contents import read_bytes
from fcn_jax.data.datasets.directory import DirectorySource
from fcn_jax.data.decode import read_stored_mask
from fcn_jax.data.labels.mask_values import Histogram, color_of, histogram
from fcn_jax.data.labels.palette import VOC_BORDER
from fcn_jax.data.mask_cache import MaskCache, digest
from fcn_jax.data.threads import on_threads
from fcn_jax.errors import DataError, listing
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Record
from fcn_jax.runtime.progress import Progress

_MOST_VALUES = 254
_MOST_COLORS = 64
_MANY = 16
"""More values than this are looked at with suspicion: smoothed masks hold many, too."""

_ADVICE = "write classes.txt with one class per line: `name`, `name VALUE` or `name R G B`"
_BORDER = VOC_BORDER[0] << 16 | VOC_BORDER[1] << 8 | VOC_BORDER[2]


def found_classes(masks: Sequence[Path], where: Path) -> tuple[tuple[str, ...], str]:
    """Make a class list of what masks hold.

    Each value of gray or indexed masks is a class, in order. Of RGB masks, each color is one. Two
    classes are called background and foreground. The value 255 is void, unless there is only one
    other value, or the others are not labels counted from 0 or 1.

    Args:
        masks: mask files, at least one. All are read, unless an earlier call has read them.
        where: the dataset's folder, for messages.

    Returns:
        The lines of a class list (`fcn_jax.data.labels.class_list.class_list_of`), and a note.

    Raises:
        DataError: masks cannot be read, hold one value only, or hold values that are hardly labels,
            such as those of smoothed edges.
    """
    found = _histograms(masks)
    kinds = Counter("rgb" if each.kind == "rgb" else "values" for each in found)
    in_colors = kinds["rgb"] > 0
    if in_colors and any(each.kind != "rgb" and not each.flattened for each in found):
        raise DataError(
            f"{where}: there is no list of classes, and {kinds['rgb']} of {len(found)} masks are "
            f"in RGB colors, the others are not; convert them to one kind, or {_ADVICE}"
        )
    counts: Counter[int] = Counter()
    for each in found:
        gray = in_colors and each.kind != "rgb"
        counts.update({value * 0x010101 if gray else value: n for value, n in each.counts.items()})
    what = "colors" if in_colors else "values"
    if problem := _problem(counts, in_colors):
        raise DataError(f"{where}: there is no list of classes, and {problem}; {_ADVICE}")
    if in_colors:
        lines = _color_lines(counts)
    else:
        border = any(each.colors.get(IGNORE_INDEX) == _BORDER for each in found)
        lines = _value_lines(sorted(counts), border)
    return lines, (
        f"no list of classes: the {what} in {len(found)} masks are the classes: "
        f"{listing(lines)}; classes.txt would name them"
    )


def _histograms(masks: Sequence[Path]) -> list[Histogram]:
    """What each mask holds, in order."""
    records = [Record(str(mask), mask, mask) for mask in masks]
    cache = MaskCache(DirectorySource(Classes(("any",), ((0, 0, 0),)), records))

    def read(mask: Path) -> tuple[str, Histogram] | str:
        try:
            data = read_bytes(mask, str(mask))
            key = digest(data)
            return key, cache.known.get(key) or histogram(read_stored_mask(data, name=str(mask)))
        except DataError as error:
            return str(error)

    with Progress("reading masks", len(masks)) as progress:
        results = on_threads(read, masks, progress.update)
    if problems := [result for result in results if isinstance(result, str)]:
        count = f"{len(problems)} masks are not usable: " if len(problems) > 1 else ""
        raise DataError(count + listing(problems, separator="; "))
    found = [result for result in results if not isinstance(result, str)]
    cache.keep(found)
    return [each for _, each in found]


def _problem(counts: Counter[int], in_colors: bool) -> str:
    """Why the values or colors are no classes; empty if they can be."""
    what = "colors" if in_colors else "values"
    if len(counts) == 1:
        (value,) = counts
        shown = color_of(value) if in_colors else value
        return f"all masks hold one of the {what} only, {shown}, so that there is nothing to learn"
    few = f"the masks hold {len(counts)} {what}"
    smoothed = (
        f"{few}, which are hardly labels: edges were smoothed, or the masks were JPEGs or were "
        "resized with interpolation, or they are photographs or probability maps; export them again"
    )
    if in_colors:
        return smoothed if len(counts) > _MOST_COLORS else ""
    if len(counts) <= _MANY:
        return ""
    labels = [value for value in counts if value != IGNORE_INDEX]
    extremes = counts[0] + counts[IGNORE_INDEX] > 0.8 * counts.total() and counts[IGNORE_INDEX]
    scattered = max(labels) >= 4 * len(labels)
    return smoothed if extremes or scattered or len(labels) > _MOST_VALUES else ""


def _value_lines(values: list[int], border: bool) -> tuple[str, ...]:
    labels = [value for value in values if value != IGNORE_INDEX]
    void = len(labels) > 1 and (border or max(labels) <= 3 * len(labels))
    if len(labels) < len(values) and not void:
        labels = values
    lines = [f"{name} {value}" for name, value in zip(_names(labels), labels, strict=True)]
    return (*lines, f"void {IGNORE_INDEX}") if len(labels) < len(values) else tuple(lines)


def _names(values: list[int]) -> list[str]:
    pair = ["background", "foreground"]
    return pair if len(values) == 2 else [f"class_{value}" for value in values]


def _color_lines(counts: Counter[int]) -> tuple[str, ...]:
    codes = sorted(code for code in counts if code != _BORDER)
    void = len(codes) > 1 and len(codes) < len(counts)
    codes = codes if void else sorted(counts)
    names = ["background", "foreground"] if len(codes) == 2 else [f"color_{c:06x}" for c in codes]
    lines = [
        " ".join([name, *map(str, color_of(code))]) for name, code in zip(names, codes, strict=True)
    ]
    return (*lines, " ".join(["void", *map(str, VOC_BORDER)])) if void else tuple(lines)
