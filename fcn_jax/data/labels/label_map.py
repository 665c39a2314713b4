"""Stored mask values to labels: by their numbers, or by their colors.

A mask is gray, indexed or RGB. Without colors in the class list, the gray value or index is looked
up in `LabelMap.values`. With colors, they decide for every kind of mask. The color of a gray value
v of n bits is its gray on a screen, v * 255 / (2^n - 1), and where that is not listed, (v, v, v).
The color of an index is its palette entry. Two kinds of masks are read by their values
nevertheless:

* A gray mask, where all of its values are listed as values and none of them is listed as a color
  that says otherwise.
* An indexed mask with indices that have no color of their own, because the palette ends before them
  or repeats the color of a lower index there (which is how tools fill up a palette). All of its
  indices must be listed as values, and the colors of the other indices must say the same as their
  values. Otherwise a repeated color counts only before the palette's last color, and if no other
  index of the mask has it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Literal

import cv2
import numpy as np

from fcn_jax.errors import DataError, listing
from fcn_jax.plugins.api import IGNORE_INDEX

Color = tuple[int, int, int]
Kind = Literal["gray", "indexed", "rgb"]
Rule = Literal["value", "color", "either"]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredMask:
    """A mask's pixels as its file stores them.

    Attributes:
        values: u8[H,W] or u16[H,W] gray values or palette indices; or u8[H,W,3], RGB.
        palette: u8[N,3], the RGB color of each index of an indexed mask, as many (up to 256) as the
            file has; None for the others.
        bits: of a gray mask, the bits of a value: 1 to 16.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    bits: int = 8


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMap:
    """What the stored values of a dataset's masks mean.

    Attributes:
        num_classes: labels 0 to `num_classes - 1` are classes.
        values: stored gray value or palette index (0 to 65535) -> label, or `IGNORE_INDEX` for
            void.
        colors: RGB color -> label or `IGNORE_INDEX`; None where the classes have no colors.
        assumed_void: whether stored 255 is void only because nothing else was said about it.
        listed: whether it comes from a list of classes that the user can edit.
    """

    num_classes: int
    values: Mapping[int, int]
    colors: Mapping[Color, int] | None = None
    assumed_void: bool = True
    listed: bool = True

    @classmethod
    def of(
        cls,
        num_classes: int,
        *,
        void: Iterable[int] = (IGNORE_INDEX,),
        palette: Mapping[Color, int] | None = None,
    ) -> LabelMap:
        """The map of masks whose stored values are the labels.

        Args:
            num_classes: stored 0 to `num_classes - 1` are classes.
            void: stored values, and labels in `palette`, that become `IGNORE_INDEX`.
            palette: RGB color -> label, for masks in colors.
        """
        ignored = frozenset(void)
        values = {value: value for value in range(num_classes)} | dict.fromkeys(
            ignored, IGNORE_INDEX
        )
        colors = palette and {
            color: IGNORE_INDEX if label in ignored else label for color, label in palette.items()
        }
        return cls(num_classes, values, colors, assumed_void=IGNORE_INDEX in ignored, listed=False)


@functools.lru_cache
def plain_labels(num_classes: int, void: tuple[int, ...] = (IGNORE_INDEX,)) -> LabelMap:
    """The map of masks that store the labels 0 to `num_classes - 1`, and void as 255 or the given values."""
    return LabelMap.of(num_classes, void=void)


def label_map(
    num_classes: int | LabelMap, void: Iterable[int], palette: Mapping[Color, int] | None
) -> LabelMap:
    """A map as it is, or that of masks that store labels; see `LabelMap.of`."""
    if isinstance(num_classes, LabelMap):
        return num_classes
    return (
        LabelMap.of(num_classes, void=void, palette=palette)
        if palette
        else plain_labels(num_classes, tuple(void))
    )


@dataclasses.dataclass(frozen=True)
class Histogram:
    """The distinct stored values of one mask.

    Attributes:
        kind: "gray", "indexed" or "rgb".
        counts: stored value -> number of pixels. The value of an RGB pixel is `red << 16 | green <<
            8 | blue`.
        colors: index -> its color as such a number, or a negative number (`_own_colors`) without
            one of its own, of an indexed mask.
        flattened: whether the file stores RGB whose channels are equal everywhere, so that its
            pixels are gray values.
        bits: of a gray mask, the bits of a value.
    """

    kind: Kind
    counts: Mapping[int, int]
    colors: Mapping[int, int] = dataclasses.field(default_factory=dict)
    flattened: bool = False
    bits: int = 8


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a mask's stored values become labels.

    Attributes:
        rule: whether values or colors decide; "either" where both give the same labels.
        labels: stored value -> label or `IGNORE_INDEX`, for those that have one.
        unknown: stored values without a label, in order.
        disputed: gray values whose color and whose number mean different things, where neither
            reading covers the whole mask.
    """

    rule: Rule
    labels: Mapping[int, int]
    unknown: tuple[int, ...] = ()
    disputed: tuple[int, ...] = ()


def histogram(stored: StoredMask) -> Histogram:
    """Count the pixels of each stored value."""
    return _histogram(stored)[0]


def read(found: Histogram, labels: LabelMap) -> Reading:
    """Give each stored value of a mask its label; see the module's docstring for the rules."""
    values = tuple(found.counts)
    if found.kind == "rgb":
        return _reading("color", {value: _label_of_color(value, labels) for value in values})
    by_value = _by_value(found, labels)
    if labels.colors is None:
        return _reading("value", by_value)
    by_color = _by_color(found, labels)
    colorless = [value for value, code in found.colors.items() if code < 0]
    if colorless:
        owned = [value for value in values if found.colors[value] >= 0]
        # A palette of grays alone, such as a black one, does not tell an index from a gray value.
        is_gray = bool(owned) and all(found.colors[value] == gray_code(value) for value in owned)
        agree = all(by_color[value] == by_value[value] for value in owned)
        if (
            None not in by_value.values()
            and agree
            and not any(_is_other_gray(v, labels) for v in colorless if is_gray)
        ):
            return _reading("either" if by_color == by_value else "value", by_value)
        colors = [_lent_color(code) if code < 0 else code for code in found.colors.values()]
        lent = {
            value: _label_of_color(_lent_color(found.colors[value]), labels) for value in colorless
        }
        return _reading(
            "color",
            by_color | (lent if len(set(colors)) == len(colors) else dict.fromkeys(colorless)),
        )
    if None not in by_color.values():
        return _reading("either" if by_color == by_value else "color", by_color)
    if found.kind == "indexed":
        return _reading("color", by_color)
    if None in by_value.values():
        neither = tuple(
            value for value in sorted(values) if by_color[value] is None and by_value[value] is None
        )
        reading = _reading("color", by_color)
        return dataclasses.replace(reading, unknown=neither or reading.unknown)
    disputed = tuple(value for value in values if by_color[value] not in (None, by_value[value]))
    return dataclasses.replace(_reading("value", by_value), disputed=disputed)


def to_labels(stored: StoredMask, labels: LabelMap, *, name: str) -> np.ndarray:
    """The labels of a mask.

    Args:
        stored: the decoded mask.
        labels: what its values mean.
        name: what to call the mask in an error.

    Returns:
        u8[H,W] of labels 0 to `num_classes - 1` or `IGNORE_INDEX`.

    Raises:
        DataError: a value or a color has no label.
    """
    if stored.values.dtype == np.uint8 and stored.values.ndim == 2:
        table, unknown, unchanged = _tables(
            labels, None if stored.palette is None else stored.palette.tobytes(), stored.bits
        )
        if not cv2.LUT(stored.values, unknown).any():
            return (
                stored.values if unchanged else np.asarray(cv2.LUT(stored.values, table), np.uint8)
            )
    # What is rare or wrong takes the time to count its values.
    found, pixels = _histogram(stored)
    reading = read(found, labels)
    if reading.unknown or reading.disputed:
        raise DataError(f"{name}: {problem(found, reading, labels)}")
    if found.kind == "rgb":
        known = np.array(sorted(reading.labels), np.int32)
        table = np.array([reading.labels[value] for value in known.tolist()], np.uint8)
        starts = _run_starts(pixels)
        of_runs = table[np.searchsorted(known, pixels.reshape(-1)[starts])]
        return np.repeat(of_runs, np.diff(starts, append=pixels.size)).reshape(pixels.shape)
    table = np.zeros(np.iinfo(pixels.dtype).max + 1, np.uint8)
    table[list(reading.labels)] = list(reading.labels.values())
    return table[pixels]


@functools.lru_cache
def _tables(
    labels: LabelMap, palette: bytes | None, bits: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """What `read` says of a mask all of whose values are known by the first rule that applies.

    Args:
        labels: what values mean.
        palette: the colors of an indexed mask, u8[N,3].
        bits: of a gray mask, the bits of a value.

    Returns:
        u8[256], stored value -> label; u8[256], 1 where a value has no label by that rule; whether
        every label is its stored value.
    """
    colors = {} if palette is None else dict(enumerate(_own_colors(palette)))
    found = Histogram(
        "gray" if palette is None else "indexed", dict.fromkeys(range(256), 0), colors, bits=bits
    )
    by_value = _by_value(found, labels)
    known = by_value if labels.colors is None else _by_color(found, labels, raw=False)
    colorless = [value for value, code in colors.items() if code < 0]
    if labels.colors is not None and colorless:
        # What depends on which indices the mask holds is left to `read`.
        plain = all(
            known[value] in (None, by_value[value]) for value in range(256) if colors[value] >= 0
        )
        has_gray = any(colors[value] == gray_code(value) for value in range(256))
        for value in colorless:
            known[value] = (
                by_value[value]
                if plain and not (has_gray and _is_other_gray(value, labels))
                else None
            )
    table = np.array([known[value] or 0 for value in range(256)], np.uint8)
    unknown = np.array([known[value] is None for value in range(256)], np.uint8)
    return table, unknown, all(label in (None, value) for value, label in known.items())


def _by_value(found: Histogram, labels: LabelMap) -> dict[int, int | None]:
    return {value: labels.values.get(value) for value in found.counts}


def _by_color(found: Histogram, labels: LabelMap, *, raw: bool = True) -> dict[int, int | None]:
    """The label of each value by its color; `raw`: whether grays may be listed as (v, v, v) although the bits are not 8."""
    code = (
        found.colors.__getitem__
        if found.kind == "indexed"
        else functools.partial(gray_code, bits=found.bits)
    )
    by_color = {value: _label_of_color(code(value), labels) for value in found.counts}
    if raw and found.kind == "gray" and found.bits != 8 and None in by_color.values():
        by_raw = _by_color(dataclasses.replace(found, bits=8), labels)
        by_color = by_color if None in by_raw.values() else by_raw
    # 255 is void unless the class list says something else about it.
    if by_color.get(IGNORE_INDEX, 0) is None and labels.values.get(IGNORE_INDEX) == IGNORE_INDEX:
        by_color[IGNORE_INDEX] = IGNORE_INDEX
    return by_color


def _is_other_gray(value: int, labels: LabelMap) -> bool:
    """Whether the color of a gray value is listed as that of another class than the value numbers."""
    return _label_of_color(gray_code(value), labels) not in (None, labels.values.get(value))


@functools.lru_cache
def _own_colors(palette: bytes) -> tuple[int, ...]:
    """The color of each index 0 to 255 as a number.

    Where the palette ends before an index, or has its color at a lower one, it is `~(index | (color
    + 1) << 8)`. The color is that of the palette, or -1 past its end and in the run of one color
    that it ends with.
    """
    colors = [int.from_bytes(palette[at : at + 3], "big") for at in range(0, len(palette) - 2, 3)][
        :256
    ]
    filled = len(colors)
    while filled and colors[filled - 1] == colors[-1]:
        filled -= 1
    colors += [-1] * (256 - len(colors))
    first: dict[int, int] = {}
    for index, color in enumerate(colors):
        first.setdefault(color, index)
    return tuple(
        color
        if color >= 0 and first[color] == index
        else ~(index | ((color if index < filled else -1) + 1) << 8)
        for index, color in enumerate(colors)
    )


def _lent_color(code: int) -> int:
    """The color of a negative number of `_own_colors`, which a lower index has too; -1 for none."""
    return (~code >> 8) - 1


def problem(found: Histogram, reading: Reading, labels: LabelMap) -> str:
    """What keeps a mask from being read: which values or colors, in how many pixels, what is known, what to do."""
    pixels = sum(found.counts[value] for value in reading.unknown)
    if reading.disputed:
        return disputed_problem(reading.disputed)
    if found.kind == "rgb" and labels.colors is None:
        return NO_COLORS
    if reading.rule == "value":
        wrong = listing(map(str, reading.unknown))
        return f"labels outside the classes: {wrong}; allowed are {allowed(labels)}. Correct the mask, or the list of classes"
    known = listing(map(str, labels.colors or ()), 24)
    if found.kind == "gray":
        wrong = listing(map(str, reading.unknown))
        return (
            f"gray values that no class has: {wrong} (in {pixels} pixels); they are neither labels (allowed are {allowed(labels)}) nor "
            f"gray colors of the class list (known are {known}). Correct the mask, or the list of classes"
        )
    codes = [found.colors[value] if found.kind == "indexed" else value for value in reading.unknown]
    colorless = [~code & 255 for code in codes if code < 0]
    if colorless:
        more = listing(color_text(code) for code in codes if code >= 0)
        also = f"; other palette colors that no class has: {more}" if more else ""
        return (
            f"palette indices without a color of their own: {listing(map(str, sorted(colorless)))} (in {pixels} pixels); the palette "
            f"ends before them or repeats a color there, and they cannot be read as labels (allowed are {allowed(labels)}) because the "
            f"palette has the classes in another order than the list, or they are not in it{also}. Write the masks with a palette of "
            "different colors, or take the colors off the list of classes if the palette index is the label"
        )
    wrong = listing(color_text(code) for code in codes)
    if found.kind == "indexed":
        return (
            f"palette colors that no class has: {wrong} (in {pixels} pixels); known are {known}. Correct the list of classes, or take the "
            "colors off it if the palette index is the label"
        )
    return (
        f"colors that no class has: {wrong} (in {pixels} pixels); known are {known}. Correct the mask (no smoothing at edges) or add the "
        "colors to the list of classes"
    )


NO_COLORS = (
    "the mask is in colors and no palette says which color is which class; save it as an indexed or gray PNG, or name the colors (in a "
    "folder's classes.txt: `name R G B`)"
)


def disputed_problem(values: Iterable[int]) -> str:
    """Why a gray mask can be read neither by color nor by value."""
    shown = listing(map(str, values))
    return (
        f"gray values {shown} are listed as colors of other classes than those that they number, and the other values of the mask are not "
        "listed as colors; take the colors off the list of classes if gray values are labels, else give every class its gray as a color"
    )


def allowed(labels: LabelMap) -> str:
    """The stored values that have a label, such as `0 to 20 and void 255`."""
    classes = sorted(value for value, label in labels.values.items() if label != IGNORE_INDEX)
    void = sorted(value for value, label in labels.values.items() if label == IGNORE_INDEX)
    known = _ranges(classes) or "none"
    return f"{known} and void {_ranges(void)}" if void else known


def gray_code(value: int, bits: int = 8) -> int:
    """The color of a gray value as a number, `v << 16 | v << 8 | v`; -1 for one that is no whole gray of 0 to 255."""
    gray, rest = divmod(value * 255, 2**bits - 1)
    return gray * 0x010101 if gray < 256 and not rest else -1


def color_of(code: int) -> Color:
    """The color that a number stands for."""
    return code >> 16, code >> 8 & 255, code & 255


def color_text(code: int) -> str:
    """The color that a number stands for, such as `(128, 64, 0)`."""
    return str(color_of(code))


def _label_of_color(code: int, labels: LabelMap) -> int | None:
    return None if labels.colors is None or code < 0 else labels.colors.get(color_of(code))


def _reading(rule: Rule, labels: Mapping[int, int | None]) -> Reading:
    known = {value: label for value, label in labels.items() if label is not None}
    return Reading(
        rule, known, tuple(sorted(value for value, label in labels.items() if label is None))
    )


def _histogram(stored: StoredMask) -> tuple[Histogram, np.ndarray]:
    """The counts, and the pixels that they count: u8[H,W], u16[H,W], or i32[H,W] of RGB numbers."""
    values = stored.values
    if values.ndim == 3:
        first = values[..., 0]
        if np.array_equal(first, values[..., 1]) and np.array_equal(first, values[..., 2]):
            pixels = np.ascontiguousarray(first)
            return Histogram("gray", _counts(pixels), flattened=True), pixels
        wide = values.astype(np.int32)
        pixels = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
        return Histogram("rgb", _counts(pixels)), pixels
    counts = _counts(values)
    if stored.palette is not None:
        own = _own_colors(stored.palette.tobytes())
        colors = {value: own[value] for value in counts}
        # An index whose color is its own gray is a gray value.
        if any(color != gray_code(value) for value, color in colors.items()):
            return Histogram("indexed", counts, colors), values
    return Histogram("gray", counts, bits=8 if stored.palette is not None else stored.bits), values


def _counts(pixels: np.ndarray) -> dict[int, int]:
    if pixels.dtype == np.uint8:
        # OpenCV counts twice as fast as NumPy, in float32, which is exact up to 2^24.
        counts = (
            cv2.calcHist([pixels], [0], None, [256], [0, 256]).reshape(-1)
            if pixels.size < 1 << 24
            else np.bincount(pixels.ravel())
        )
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    # Neighbors are mostly alike, so that sorting runs is much less work than sorting pixels.
    starts = _run_starts(pixels)
    lengths = np.diff(starts, append=pixels.size)
    distinct, which = np.unique(pixels.reshape(-1)[starts], return_inverse=True)
    return dict(
        zip(
            distinct.tolist(), np.bincount(which, weights=lengths).astype(int).tolist(), strict=True
        )
    )


def _run_starts(pixels: np.ndarray) -> np.ndarray:
    flat = pixels.reshape(-1)
    return np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))


def _ranges(values: list[int]) -> str:
    """Such as `0 to 4, 7, 9`; values in order."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return listing(str(first) if first == last else f"{first} to {last}" for first, last in parts)
