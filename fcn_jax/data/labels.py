"""Stored mask values to labels, with an error that names the file for each value that has no label."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import cv2
import numpy as np

from fcn_jax.api import IGNORE_INDEX
from fcn_jax.errors import DataError, listing

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredMask:
    """A mask's pixels as its file stores them.

    Attributes:
        values: u8[H,W] or u16[H,W] gray values or palette indices; or u8[H,W,3], RGB.
        palette: u8[256,3], the RGB color of each index of an indexed mask (black past the file's own); None for the others.
    """

    values: np.ndarray
    palette: np.ndarray | None = None


def to_labels(
    stored: StoredMask,
    num_classes: int,
    *,
    void: tuple[int, ...] = (IGNORE_INDEX,),
    palette: Mapping[Color, int] | None = None,
    name: str,
) -> np.ndarray:
    """The labels of a mask; see `fcn_jax.data.decode.read_mask`.

    Args:
        stored: the decoded mask.
        num_classes: labels 0 to `num_classes - 1` are classes.
        void: labels that become `IGNORE_INDEX`.
        palette: RGB color -> label, for masks in colors.
        name: what to call the mask in an error.

    Returns:
        u8[H,W] of labels 0 to `num_classes - 1` or `IGNORE_INDEX`.

    Raises:
        DataError: a value or a color has no label.
    """
    values = stored.values
    if values.dtype != np.uint8:
        if (wide := values > 255).any():
            found = map(str, np.unique(values[wide]).tolist())
            raise DataError(f"{name}: labels outside the classes: {listing(found)}; a label is at most 255")
        values = values.astype(np.uint8)
    labels = _labels_of_colors(values, palette, name) if values.ndim == 3 else values
    return _check_labels(labels, num_classes, void, name)


def _labels_of_colors(pixels: np.ndarray, palette: Mapping[Color, int] | None, name: str) -> np.ndarray:
    if palette is None:
        raise DataError(
            f"{name}: the mask is in colors and no palette says which color is which class; save it as an indexed or gray PNG, "
            "or name the colors (in a folder's classes.txt: `name R G B`)"
        )
    codes = np.array([_code(color) for color in palette], np.int32)
    order = np.argsort(codes)
    codes, labels = codes[order], np.array(list(palette.values()), np.uint8)[order]
    wide = pixels.astype(np.int32)
    pixel_codes = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    index = np.minimum(np.searchsorted(codes, pixel_codes), len(codes) - 1)
    unknown = codes[index] != pixel_codes
    if unknown.any():
        found = [f"({code >> 16}, {code >> 8 & 255}, {code & 255})" for code in np.unique(pixel_codes[unknown]).tolist()]
        allowed = [str(color) for color in palette]
        raise DataError(
            f"{name}: colors that no class has: {listing(found)} (in {int(unknown.sum())} pixels); "
            f"known are {listing(allowed, 24)}. Correct the mask (no smoothing at edges) or add the colors to the palette"
        )
    return labels[index]


def _code(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _check_labels(labels: np.ndarray, num_classes: int, void: tuple[int, ...], name: str) -> np.ndarray:
    table = _label_table(num_classes, void)
    # Row 0 is the new label, which is the old one unless there are other void labels; row 1 whether it is wrong.
    if cv2.LUT(labels, table[1]).any():
        wrong = [str(label) for label in np.unique(labels).tolist() if table[1, label]]
        raise DataError(
            f"{name}: labels outside the classes: {listing(wrong)}; allowed are 0 to {num_classes - 1} and void "
            f"{listing(map(str, void))}. Correct the mask, or the list of classes"
        )
    return labels if set(void) <= {IGNORE_INDEX} else np.asarray(cv2.LUT(labels, table[0]), np.uint8)


@functools.lru_cache
def _label_table(num_classes: int, void: tuple[int, ...]) -> np.ndarray:
    table = np.zeros((2, 256), np.uint8)
    table[0] = np.arange(256)
    table[1, num_classes:] = 1
    table[0, list(void)] = IGNORE_INDEX
    table[1, list(void)] = 0
    table.setflags(write=False)
    return table
