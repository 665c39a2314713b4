"""Messages on masks whose values or colors have no label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.labels.mask_values import Histogram, Reading, color_of
from fcn_jax.errors import listing
from fcn_jax.plugins.api import IGNORE_INDEX


def no_colors(counts: Mapping[int, int]) -> str:
    """Why a mask of these color codes, with their numbers of pixels, cannot be read."""
    return (
        "the mask is in colors and no palette says which color is which class (it holds "
        f"{counted_colors(counts)}); save it as an indexed or gray PNG, or list the colors (in a "
        "folder's classes.txt: `name R G B`)"
    )


def counted_colors(counts: Mapping[int, int]) -> str:
    """Color codes with their numbers of pixels, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return listing(
        (f"{color_of(code)} in {n} pixel{'s' * (n > 1)}" for code, n in ordered), limit=6
    )


def problem(found: Histogram, reading: Reading, labels: LabelMap) -> str:
    """Why a mask cannot be read: values or colors, number of pixels, allowed ones, what to do."""
    if reading.disputed:
        return disputed_problem(reading.disputed)
    if found.kind == "rgb" and labels.colors is None:
        return no_colors(found.counts)
    pixels = sum(found.counts[value] for value in reading.unknown)
    wrong = listing(map(str, reading.unknown))
    if reading.rule == "value":
        return (
            f"labels outside the classes: {wrong}; allowed are {allowed(labels)}. Correct the mask "
            "or the list of classes"
        )
    known = listing(map(str, labels.colors or ()), 24)
    if found.kind == "gray":
        return (
            f"gray values that no class has: {wrong} (in {pixels} pixels); they are neither labels "
            f"(allowed are {allowed(labels)}) nor gray colors of the class list (known are "
            f"{known}). Correct the mask or the list of classes"
        )
    code_of = found.colors if found.kind == "indexed" else {v: v for v in reading.unknown}
    codes = [code_of[value] for value in reading.unknown]
    colors = counted_colors(
        {code_of[v]: found.counts[v] for v in reading.unknown if code_of[v] >= 0}
    )
    colorless = sorted(~code & 255 for code in codes if code < 0)
    if colorless:
        also = f"; other palette colors that no class has: {colors}" if colors else ""
        return (
            f"palette indices without a color of their own: {listing(map(str, colorless))} (in "
            f"{pixels} pixels); the palette ends before them or repeats a color there, and they "
            f"cannot be read as labels (allowed are {allowed(labels)}) because the palette has the "
            f"classes in another order than the list, or they are not in it{also}. Write the masks "
            "with a palette of different colors, or remove the colors from the list of classes if "
            "the palette index is the label"
        )
    which = f"colors that no class has: {colors}; known are {known}"
    if found.kind == "indexed":
        return (
            f"palette {which}. Correct the list of classes, or remove the colors from it if the "
            "palette index is the label"
        )
    return f"{which}. Correct the mask (no smoothing at edges) or add the colors to the class list"


def disputed_problem(values: Iterable[int]) -> str:
    """Why a gray mask can be read neither by color nor by value."""
    return (
        f"gray values {listing(map(str, values))} are listed as colors of other classes than those "
        "with these numbers, and the other values of the mask are not listed as colors; remove the "
        "colors from the list of classes if gray values are labels, otherwise give every class its "
        "gray as a color"
    )


def allowed(labels: LabelMap) -> str:
    """The stored values that have a label, such as `0 to 20 and void 255`."""
    groups: tuple[list[int], list[int]] = ([], [])
    for value, label in sorted(labels.values.items()):
        groups[label == IGNORE_INDEX].append(value)
    classes, void = map(_ranges, groups)
    return f"{classes or 'none'} and void {void}" if void else classes or "none"


def _ranges(values: list[int]) -> str:
    """A list such as `0 to 4, 7, 9` of values in order."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return listing(str(first) if first == last else f"{first} to {last}" for first, last in parts)
