"""Masks of COCO's annotations: polygons and run-length encodings, drawn as COCO's own API does.

A region is given by toggles: ascending positions in the image, column by column from the top, at
which the mask changes between outside and inside.

Reference: https://github.com/cocodataset/cocoapi, common/maskApi.c (`rleFrPoly`, `rleFrString`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_SCALE = 5.0
"""Points on a polygon's boundary per pixel."""


def draw(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The pixels of a region.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, ...] in pixels; or a dict with `size`,
            [height, width], and `counts`, the lengths of runs outside and inside in turn, as a list
            or in COCO's compressed text.
        height: the height of the image, at least 1.
        width: the width of the image, at least 1.

    Returns:
        bool[height,width].

    Raises:
        ValueError: it is neither, or does not fit the image.
    """
    if isinstance(segmentation, dict):
        return _of_toggles(_run_toggles(segmentation, height, width), height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("the segmentation is neither polygons nor run lengths")
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        mask |= _of_toggles(_polygon_toggles(polygon, height, width), height, width)
    return mask


def decode_counts(text: str) -> list[int]:
    """The run lengths in COCO's compressed text.

    Each number has five bits in a character from 48 on, the lowest first; 32 says that more follow.
    From the fourth number on, it is the difference to the number before the last.

    Raises:
        ValueError: the text ends within a number, or has other characters.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"the character {character!r} occurs in compressed run lengths")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the compressed run lengths end within a number")
    return counts


def _run_toggles(encoded: dict[str, Any], height: int, width: int) -> np.ndarray:
    size, counts = encoded.get("size"), encoded.get("counts")
    if size != [height, width]:
        raise ValueError(f"the run lengths are for {size} pixels, the image has {[height, width]}")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    runs = np.array(counts, np.int64) if isinstance(counts, list) else np.array([-1])
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"the run lengths do not add up to {height} * {width} pixels")
    return np.cumsum(runs)


def _polygon_toggles(polygon: Any, height: int, width: int) -> np.ndarray:
    points = np.array(polygon, np.float64) if isinstance(polygon, list) else np.zeros(0)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError("a polygon is not a list of three or more points x, y")
    # Conversion to integers cuts toward zero, as C's does.
    xs, ys = (_SCALE * points.reshape(-1, 2).T + 0.5).astype(np.int64)
    along, across = _boundary(xs, ys)
    # Where the boundary goes to another column of the fine grid, and that is a pixel's center.
    before, after = along[:-1], along[1:]
    x = np.where(after < before, after, after - 1)
    x, y = ((v + 0.5) / _SCALE - 0.5 for v in (x, np.minimum(across[:-1], across[1:])))
    crosses = (before != after) & (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    column = x[crosses].astype(np.int64)
    row = np.ceil(np.clip(y[crosses], 0, height)).astype(np.int64)
    return np.sort(column * height + row)


def _boundary(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dense points along a closed polygon on the fine grid, i64[M] each for x and y."""
    ends_x, ends_y = np.roll(xs, -1), np.roll(ys, -1)
    wide, high = np.abs(ends_x - xs), np.abs(ends_y - ys)
    flat = wide >= high
    # Each edge is drawn from its lower end, so that it is the same in both directions.
    flip = np.where(flat, xs > ends_x, ys > ends_y)
    x0, x1 = np.where(flip, ends_x, xs), np.where(flip, xs, ends_x)
    y0, y1 = np.where(flip, ends_y, ys), np.where(flip, ys, ends_y)
    length = np.maximum(wide, high)
    slope = np.where(flat, y1 - y0, x1 - x0) / np.maximum(length, 1)
    edge = np.repeat(np.arange(len(xs)), length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - (length + 1), length + 1)
    step = np.where(flip[edge], length[edge] - step, step)
    minor = (np.where(flat, y0, x0)[edge] + slope[edge] * step + 0.5).astype(np.int64)
    major = np.where(flat, x0, y0)[edge] + step
    return np.where(flat[edge], major, minor), np.where(flat[edge], minor, major)


def _of_toggles(toggles: Sequence[int] | np.ndarray, height: int, width: int) -> np.ndarray:
    flat = np.zeros(height * width, bool)
    ends = [*np.asarray(toggles).tolist(), height * width]
    for start, stop in zip(ends[::2], ends[1::2], strict=False):
        flat[start:stop] = True
    return flat.reshape(width, height).T
