"""Masks and predictions as pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.plugins.api import IGNORE_INDEX, Classes
from fcn_jax.runtime.atomic import replacing

RESULT = "fcn_jax predict"
"""The PNG text `Software` of masks and overlays."""

_VOID = (224, 224, 192)
"""VOC's color of its void label."""


def generic_classes(num_classes: int) -> Classes:
    """Numbered classes in VOC's colors, for a model that does not say what its classes are."""
    return Classes(
        tuple(f"class {label}" for label in range(num_classes)), voc_palette(num_classes)
    )


def colorize(mask: np.ndarray, classes: Classes) -> np.ndarray:
    """A mask u8[H,W] in its classes' colors, u8[H,W,3]; void in VOC's cream."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = classes.palette
    table[IGNORE_INDEX] = _VOID
    return table[mask]


def overlay(
    image: np.ndarray, mask: np.ndarray, classes: Classes, opacity: float = 0.55
) -> np.ndarray:
    """A mask over its image: class colors mixed in, outlines drawn.

    Class 0 stays clear where its color is black (a background).

    Args:
        image: u8[H,W,3], RGB.
        mask: u8[H,W].
        classes: names and colors.
        opacity: share of the class color, 0 to 1.

    Returns:
        u8[H,W,3].
    """
    colors = colorize(mask, classes).astype(np.float32)
    share = np.full(mask.shape, opacity, np.float32)
    if classes.palette[0] == (0, 0, 0):
        share[mask == 0] = 0
    mixed = image * (1 - share[..., None]) + colors * share[..., None]
    edge = np.zeros(mask.shape, bool)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:] |= mask[1:] != mask[:-1]
    mixed[edge] = 255
    return mixed.round().astype(np.uint8)


def panel(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, classes: Classes
) -> np.ndarray:
    """Image, truth and prediction side by side, over a legend: u8[H + legend, 3 W, 3]."""
    row = np.concatenate(
        [image, overlay(image, truth, classes), overlay(image, prediction, classes)], axis=1
    )
    return np.concatenate([row, _legend(np.union1d(truth, prediction), classes, row.shape[1])])


def _legend(labels: np.ndarray, classes: Classes, width: int) -> np.ndarray:
    entries = [
        (classes.names[label], classes.palette[label]) if label < len(classes) else ("void", _VOID)
        for label in labels
    ]
    line, swatch, gap = 16, 10, 6
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    placed: list[tuple[int, int, str, tuple[int, int, int]]] = []
    x = y = gap
    for name, color in entries:
        length = swatch + 4 + int(draw.textlength(name)) + 2 * gap
        if x > gap and x + length > width:
            x, y = gap, y + line
        placed.append((x, y, name, color))
        x += length
    picture = Image.new("RGB", (width, y + line), (32, 32, 32))
    draw = ImageDraw.Draw(picture)
    for x, y, name, color in placed:
        draw.rectangle((x, y, x + swatch, y + swatch), fill=color, outline=(255, 255, 255))
        draw.text((x + swatch + 4, y - 1), name, fill=(255, 255, 255))
    return np.asarray(picture)


def write_mask(path: Path, mask: np.ndarray, classes: Classes) -> None:
    """Write a predicted mask as an indexed PNG, whole or not at all; the index is the class.

    Args:
        path: the file; missing folders are made.
        mask: u8[H,W].
        classes: names and colors.

    Raises:
        WriteError: the file cannot be written.
    """
    picture = Image.fromarray(mask)
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(classes)] = classes.palette
    colors[IGNORE_INDEX] = _VOID
    picture.putpalette(colors.tobytes())
    _write_png(path, picture, RESULT)


def write_overlay(path: Path, picture: np.ndarray) -> None:
    """Write an overlay u8[H,W,3] as a PNG that `is_result` recognizes. Raises as `write_mask`."""
    _write_png(path, Image.fromarray(picture), RESULT)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write u8[H,W,3] as a PNG; whole or not at all. Raises as `write_mask` does."""
    _write_png(path, Image.fromarray(image))


def _write_png(path: Path, picture: Image.Image, software: str | None = None) -> None:
    text = PngImagePlugin.PngInfo()
    if software:
        text.add_text("Software", software)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=text)


def is_result(path: Path) -> bool:
    """Whether a file is a mask or an overlay that `predict` wrote.

    The mark is the PNG text `Software: fcn_jax predict`. Only the header is read. Anything that is
    not a readable regular file is not a result.
    """
    if not os.path.isfile(path):  # a pipe would wait for its writer
        return False
    try:
        with open(path, "rb") as file:
            header = file.read(128)
    except OSError:
        return False
    return header.startswith(b"\x89PNG\r\n\x1a\n") and b"tEXtSoftware\0" + RESULT.encode() in header


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures u8[h,w,3] of any sizes one above the other, filled with black at the right."""
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0))) for p in pictures])
