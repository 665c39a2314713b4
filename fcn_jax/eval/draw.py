"""Masks and predictions as pictures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.plugins.api import IGNORE_INDEX, Classes
from fcn_jax.runtime.atomic import replacing

RESULT = "fcn_jax predict"
"""Value of the PNG text `Software` in masks and overlays."""

IGNORED_COLOR = (224, 224, 192)
"""The color of VOC's void class."""


NO_CLASS = 254
"""The label of pixels without a class in pictures of the task "multilabel"."""


def one_label(mask: np.ndarray) -> np.ndarray:
    """The mask of a picture that shows one class per pixel.

    Args:
        mask: u8[H,W], which is returned; or u8[H,W,K] of 0, 1 and `IGNORE_INDEX`.

    Returns:
        u8[H,W]: the last class that a pixel has, or `IGNORE_INDEX` if it is ignored for all
        classes, or else `NO_CLASS`.
    """
    if mask.ndim == 2:
        return mask
    has = mask == 1
    last = mask.shape[2] - 1 - has[..., ::-1].argmax(2)
    none = np.where((mask == IGNORE_INDEX).all(2), IGNORE_INDEX, NO_CLASS)
    return np.where(has.any(2), last, none).astype(np.uint8)


def generic_classes(num_classes: int) -> Classes:
    """Numbered classes in VOC's colors, for a model without class names."""
    return Classes(
        tuple(f"class {label}" for label in range(num_classes)), voc_palette(num_classes)
    )


def colorize(mask: np.ndarray, classes: Classes) -> np.ndarray:
    """Color a mask: u8[H,W] -> u8[H,W,3]. Ignored pixels get the color of VOC's void class."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = classes.palette
    table[IGNORE_INDEX] = IGNORED_COLOR
    return table[mask]


def overlay(
    image: np.ndarray, mask: np.ndarray, classes: Classes, opacity: float = 0.55
) -> np.ndarray:
    """Blend a mask's colors into its image and draw white outlines.

    Class 0 stays transparent if its color is black (a background).

    Args:
        image: u8[H,W,3], RGB.
        mask: u8[H,W], or u8[H,W,K] (see `one_label`).
        classes: names and colors.
        opacity: share of the class color, 0 to 1.

    Returns:
        u8[H,W,3].
    """
    mask = one_label(mask)
    colors = colorize(mask, classes).astype(np.float32)
    share = np.full(mask.shape, opacity, np.float32)
    if classes.palette[0] == (0, 0, 0):
        share[mask == 0] = 0
    if len(classes) <= NO_CLASS:
        share[mask == NO_CLASS] = 0
    mixed = image * (1 - share[..., None]) + colors * share[..., None]
    mixed[_edges(mask)] = 255
    return mixed.round().astype(np.uint8)


def layer(mask: np.ndarray, classes: Classes) -> np.ndarray:
    """Return the colors and outlines of `overlay` as a picture to lay over an image.

    Args:
        mask: u8[H,W], or u8[H,W,K] (see `one_label`).
        classes: names and colors.

    Returns:
        u8[H,W,4], RGBA; opaque except for class 0 if its color is black, and `NO_CLASS`.
    """
    mask = one_label(mask)
    alpha = np.full(mask.shape, 255, np.uint8)
    if classes.palette[0] == (0, 0, 0):
        alpha[mask == 0] = 0
    if len(classes) <= NO_CLASS:
        alpha[mask == NO_CLASS] = 0
    picture = np.dstack([colorize(mask, classes), alpha])
    picture[_edges(mask)] = 255
    return picture


def _edges(mask: np.ndarray) -> np.ndarray:
    """bool[H,W], the pixels whose left or upper neighbor has another label."""
    edge = np.zeros(mask.shape, bool)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:] |= mask[1:] != mask[:-1]
    return edge


def panel(
    image: np.ndarray, ground_truth: np.ndarray, prediction: np.ndarray, classes: Classes
) -> np.ndarray:
    """Image, ground truth and prediction side by side over a legend: u8[H + legend, 3 W, 3]."""
    masks = (one_label(ground_truth), one_label(prediction))
    row = np.concatenate([image, *(overlay(image, mask, classes) for mask in masks)], axis=1)
    return np.concatenate([row, _legend(np.union1d(*masks), classes, row.shape[1])])


def _legend(labels: np.ndarray, classes: Classes, width: int) -> np.ndarray:
    entries = [
        (classes.names[label], classes.palette[label])
        if label < len(classes)
        else ("no class", (0, 0, 0))
        if label == NO_CLASS
        else ("ignored", IGNORED_COLOR)
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
    """Write a predicted mask, atomically: an indexed PNG, whose index is the class.

    A mask of the task "multilabel" becomes a gray TIFF with a page of 0 and 1 for each class.

    Args:
        path: the file; missing folders are created.
        mask: u8[H,W], or u8[H,W,K].
        classes: names and colors.

    Raises:
        WriteError: the file cannot be written.
    """
    if mask.ndim == 3:
        first, *others = (Image.fromarray(page) for page in np.moveaxis(mask, 2, 0))
        with replacing(path) as temporary:
            first.save(
                temporary,
                format="TIFF",
                compression="tiff_adobe_deflate",
                save_all=True,
                append_images=others,
                software=RESULT,
            )
        return
    picture = Image.fromarray(mask)
    picture.putpalette(colorize(np.arange(256, dtype=np.uint8), classes).tobytes())
    _write_png(path, picture, RESULT)


def write_overlay(path: Path, picture: np.ndarray) -> None:
    """Write an overlay u8[H,W,3] as a PNG that `is_result` recognizes. Raises `WriteError`."""
    _write_png(path, Image.fromarray(picture), RESULT)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write u8[H,W,3] as a PNG, atomically. Raises `WriteError`."""
    _write_png(path, Image.fromarray(image))


def _write_png(path: Path, picture: Image.Image, software: str | None = None) -> None:
    text = PngImagePlugin.PngInfo()
    if software:
        text.add_text("Software", software)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=text)


def is_result(path: Path) -> bool:
    """Whether a file is a mask or an overlay that `predict` wrote.

    The PNG text or TIFF tag `Software: fcn_jax predict` marks them. Only the header, and the table
    of a TIFF's first page, is read. Returns False for unreadable files and for anything but regular
    files.
    """
    if not os.path.isfile(path):  # opening a pipe would block
        return False
    try:
        with open(path, "rb") as file:
            header = file.read(128)
            if header.startswith(b"II*\0"):  # as Pillow writes it
                table = int.from_bytes(header[4:8], "little")
                file.seek(max(0, table - 4096))  # libtiff writes texts before the table
                return RESULT.encode() + b"\0" in file.read(8192)
    except OSError:
        return False
    return header.startswith(b"\x89PNG\r\n\x1a\n") and b"tEXtSoftware\0" + RESULT.encode() in header
