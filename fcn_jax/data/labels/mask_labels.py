"""From stored mask values to labels, by the values or by the colors that they show.

A mask is gray, indexed or RGB. If the class list has no colors, the gray value or palette index is
looked up in `LabelMap.values`. If it has colors, they decide for every kind of mask. The color of a
gray value v of n bits is its gray on a screen, v * 255 / (2^n - 1), and if that is not listed,
(v, v, v). The color of an index is its palette entry. Two kinds of masks are read by their values
even so:

* A gray mask whose values are all listed as values, if none of them is listed as a color with
  another meaning.
* An indexed mask with indices that have no color of their own, because the palette ends before them
  or repeats the color of a lower index there (tools fill up palettes in this way). All its indices
  must be listed as values, and the colors of the other indices must mean the same as their values.
  Otherwise a repeated color counts only before the palette's last color, and only if no other index
  of the mask has it.
"""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np

from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.labels.mask_errors import problem
from fcn_jax.data.labels.mask_values import (
    Histogram,
    Kind,
    Reading,
    Rule,
    StoredMask,
    color_of,
    count,
    gray_code,
    lent_color,
    own_colors,
    run_starts,
)
from fcn_jax.errors import DataError
from fcn_jax.plugins.api import IGNORE_INDEX

Found = dict[int, int | None]
"""Stored value -> its label; None for a value without one."""


def read(found: Histogram, labels: LabelMap) -> Reading:
    """Give each stored value of a mask its label, by the rules in the module's docstring."""
    values = tuple(found.counts)
    if found.kind == "rgb":
        return _reading("color", {value: _of_color(value, labels) for value in values})
    by_value = _by_value(found, labels)
    if labels.colors is None:
        return _reading("value", by_value)
    by_color = _by_color(found, labels)
    both: Rule | None = "either" if by_color == by_value else None
    colorless = [value for value, code in found.colors.items() if code < 0]
    if colorless:
        owned = [value for value in values if found.colors[value] >= 0]
        # A palette of grays only, such as a black one, does not tell an index from a gray value.
        is_gray = bool(owned) and all(found.colors[value] == gray_code(value) for value in owned)
        if (
            None not in by_value.values()
            and all(by_color[value] == by_value[value] for value in owned)
            and not (is_gray and any(_is_other_gray(value, labels) for value in colorless))
        ):
            return _reading(both or "value", by_value)
        colors = [lent_color(code) if code < 0 else code for code in found.colors.values()]
        lent: Found = dict.fromkeys(colorless)
        if len(set(colors)) == len(colors):
            lent = {v: _of_color(lent_color(found.colors[v]), labels) for v in colorless}
        return _reading("color", by_color | lent)
    if None not in by_color.values():
        return _reading(both or "color", by_color)
    if found.kind == "indexed":
        return _reading("color", by_color)
    if None in by_value.values():
        neither = [v for v in sorted(values) if by_color[v] is None and by_value[v] is None]
        reading = _reading("color", by_color)
        return dataclasses.replace(reading, unknown=tuple(neither) or reading.unknown)
    disputed = tuple(value for value in values if by_color[value] not in (None, by_value[value]))
    return dataclasses.replace(_reading("value", by_value), disputed=disputed)


def to_labels(stored: StoredMask, labels: LabelMap, *, name: str) -> np.ndarray:
    """The labels of a mask.

    Args:
        stored: the decoded mask.
        labels: the labels of its values and colors.
        name: the name of the mask in an error.

    Returns:
        u8[H,W] of labels 0 to `num_classes - 1` or `IGNORE_INDEX`.

    Raises:
        DataError: a value or a color has no label.
    """
    values = stored.values
    if values.dtype == np.uint8 and values.ndim == 2:
        palette = None if stored.palette is None else stored.palette.tobytes()
        table, unknown, unchanged = _tables(labels, palette, stored.bits)
        if not cv2.LUT(values, unknown).any():
            return values if unchanged else np.asarray(cv2.LUT(values, table), np.uint8)
    # Only rare or wrong masks need the time to count their values.
    found, pixels = count(stored)
    reading = read(found, labels)
    if reading.unknown or reading.disputed:
        raise DataError(f"{name}: {problem(found, reading, labels)}")
    if found.kind == "rgb":
        known = np.array(sorted(reading.labels), np.int32)
        table = np.array([reading.labels[value] for value in known.tolist()], np.uint8)
        starts = run_starts(pixels)
        of_runs = table[np.searchsorted(known, pixels.reshape(-1)[starts])]
        return np.repeat(of_runs, np.diff(starts, append=pixels.size)).reshape(pixels.shape)
    table = np.zeros(np.iinfo(pixels.dtype).max + 1, np.uint8)
    table[list(reading.labels)] = list(reading.labels.values())
    return table[pixels]


@functools.lru_cache
def _tables(
    labels: LabelMap, palette: bytes | None, bits: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Tables for masks whose values are all known by the first rule that applies.

    Args:
        labels: the labels of values and colors.
        palette: the colors of an indexed mask, u8[N,3].
        bits: the bits of a gray value.

    Returns:
        u8[256], stored value -> label; u8[256], 1 for a value that has no label by that rule;
        whether every label is its stored value.
    """
    colors = {} if palette is None else dict(enumerate(own_colors(palette)))
    kind: Kind = "gray" if palette is None else "indexed"
    found = Histogram(kind, dict.fromkeys(range(256), 0), colors, bits=bits)
    known = by_value = _by_value(found, labels)
    if labels.colors is not None:
        known = _by_color(found, labels, raw=False)
        # A case that depends on which indices the mask holds is left to `read`.
        plain = all(known[v] in (None, by_value[v]) for v, code in colors.items() if code >= 0)
        has_gray = any(code == gray_code(value) for value, code in colors.items())
        for value in (value for value, code in colors.items() if code < 0):
            is_safe = plain and not (has_gray and _is_other_gray(value, labels))
            known[value] = by_value[value] if is_safe else None
    table = np.array([known[value] or 0 for value in range(256)], np.uint8)
    unknown = np.array([known[value] is None for value in range(256)], np.uint8)
    return table, unknown, all(label in (None, value) for value, label in known.items())


def _by_value(found: Histogram, labels: LabelMap) -> Found:
    return {value: labels.values.get(value) for value in found.counts}


def _by_color(found: Histogram, labels: LabelMap, *, raw: bool = True) -> Found:
    """The label of each value by its color.

    Args:
        found: the values of the mask.
        labels: the labels of the colors.
        raw: whether a gray value of other than 8 bits may be listed as (v, v, v).
    """
    indexed = found.kind == "indexed"
    codes = found.colors if indexed else {v: gray_code(v, found.bits) for v in found.counts}
    by_color = {value: _of_color(codes[value], labels) for value in found.counts}
    if raw and found.kind == "gray" and found.bits != 8 and None in by_color.values():
        by_raw = _by_color(dataclasses.replace(found, bits=8), labels)
        by_color = by_color if None in by_raw.values() else by_raw
    # 255 is void unless the class list says otherwise.
    if by_color.get(IGNORE_INDEX, 0) is None and labels.values.get(IGNORE_INDEX) == IGNORE_INDEX:
        by_color[IGNORE_INDEX] = IGNORE_INDEX
    return by_color


def _is_other_gray(value: int, labels: LabelMap) -> bool:
    """Whether a value's gray is listed as the color of another class than the value's number."""
    return _of_color(gray_code(value), labels) not in (None, labels.values.get(value))


def _of_color(code: int, labels: LabelMap) -> int | None:
    return None if labels.colors is None or code < 0 else labels.colors.get(color_of(code))


def _reading(rule: Rule, labels: Found) -> Reading:
    known = {value: label for value, label in labels.items() if label is not None}
    return Reading(rule, known, tuple(sorted(labels.keys() - known.keys())))
