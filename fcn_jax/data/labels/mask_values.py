"""The values that a mask's file stores, their number of pixels, and the colors that they show.

A color as a number ("code") is `red << 16 | green << 8 | blue`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import cv2
import numpy as np

from fcn_jax.data.labels.label_map import Color

Kind = Literal["gray", "indexed", "rgb"]
Rule = Literal["value", "color", "either"]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredMask:
    """A mask's pixels as its file stores them.

    Attributes:
        values: u8[H,W] or u16[H,W] gray values or palette indices; or u8[H,W,3] RGB.
        palette: u8[N,3], the RGB color of each index of an indexed mask, for up to 256 indices;
            otherwise None.
        bits: the bits of a gray value, 1 to 16; 8 for other masks.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    bits: int = 8


@dataclasses.dataclass(frozen=True)
class Histogram:
    """The distinct stored values of one mask.

    Attributes:
        kind: "gray", "indexed" or "rgb".
        counts: stored value -> number of pixels. The value of an RGB pixel is its color code.
        colors: palette index -> color code, or a negative number (see `own_colors`) if the index
            has no color of its own. Only for an indexed mask.
        flattened: whether the file stores RGB whose channels are equal everywhere, so that its
            pixels are gray values.
        bits: the bits of a gray value.
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
        rule: whether values or colors decide; "either" if both give the same labels.
        labels: stored value -> label or `IGNORE_INDEX`, for values that have one.
        unknown: stored values without a label, in order.
        disputed: gray values whose color and number mean different things, in a mask that neither
            rule covers completely.
    """

    rule: Rule
    labels: Mapping[int, int]
    unknown: tuple[int, ...] = ()
    disputed: tuple[int, ...] = ()


def histogram(stored: StoredMask) -> Histogram:
    """Count the pixels of each stored value."""
    return count(stored)[0]


def count(stored: StoredMask) -> tuple[Histogram, np.ndarray]:
    """The histogram, and the pixels that it counts.

    Returns:
        The histogram; u8[H,W] or u16[H,W] of values, or i32[H,W] of color codes.
    """
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
    if stored.palette is None:
        return Histogram("gray", counts, bits=stored.bits), values
    own = own_colors(stored.palette.tobytes())
    colors = {value: own[value] for value in counts}
    # If the color of every index is its own gray, the indices are gray values.
    if all(color == gray_code(value) for value, color in colors.items()):
        return Histogram("gray", counts), values
    return Histogram("indexed", counts, colors), values


def run_starts(pixels: np.ndarray) -> np.ndarray:
    """i64[R], the flat positions at which runs of equal pixels start."""
    flat = pixels.reshape(-1)
    return np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))


def _counts(pixels: np.ndarray) -> dict[int, int]:
    if pixels.dtype == np.uint8:
        # OpenCV counts twice as fast as NumPy, but in float32, which is exact up to 2^24.
        if pixels.size < 1 << 24:
            counts = cv2.calcHist([pixels], [0], None, [256], [0, 256]).reshape(-1)
        else:
            counts = np.bincount(pixels.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    # Neighbors are mostly equal, so that sorting runs is much faster than sorting pixels.
    starts = run_starts(pixels)
    distinct, which = np.unique(pixels.reshape(-1)[starts], return_inverse=True)
    totals = np.bincount(which, weights=np.diff(starts, append=pixels.size)).astype(int)
    return dict(zip(distinct.tolist(), totals.tolist(), strict=True))


@functools.lru_cache
def own_colors(palette: bytes) -> tuple[int, ...]:
    """The color code of each index 0 to 255.

    An index has no color of its own if the palette ends before it, or if a lower index has the same
    color. Its number is then `~(index | (code + 1) << 8)`, where the code is the palette's color;
    or -1 past the palette's end and in the run of one color with which the palette ends.
    """
    colors = [int.from_bytes(palette[at : at + 3], "big") for at in range(0, len(palette) - 2, 3)]
    colors = colors[:256]
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


def lent_color(code: int) -> int:
    """The color in a negative number of `own_colors`, which a lower index has too; -1 for none."""
    return (~code >> 8) - 1


def gray_code(value: int, bits: int = 8) -> int:
    """The color code of a gray value of n bits as a screen shows it: v * 255 / (2^n - 1).

    -1 if that is not a whole number from 0 to 255.
    """
    gray, rest = divmod(value * 255, 2**bits - 1)
    return gray * 0x010101 if gray < 256 and not rest else -1


def color_of(code: int) -> Color:
    """The RGB color of a color code."""
    return code >> 16, code >> 8 & 255, code & 255
