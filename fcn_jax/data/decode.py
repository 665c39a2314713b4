"""Encoded images and masks to arrays, with an error that names the file for whatever is wrong with it.

Images go through OpenCV (fast, releases the GIL), masks through Pillow (OpenCV turns an indexed PNG into colors). Both are
read as stored: an EXIF orientation is ignored unless asked for, because a mask follows the stored pixels.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fcn_jax.api import IGNORE_INDEX, Example, Record
from fcn_jax.data.labels import Color, LabelMap, StoredMask, label_map, to_labels
from fcn_jax.data.transforms import resize
from fcn_jax.errors import DataError

_GRAY_MODES = ("P", "L", "1")
_COLOR_MODES = ("RGB", "RGBA")

_JPEG = b"\xff\xd8"
_DCT_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
"""Markers of the kinds of JPEG that are made of frequencies: all but lossless and hierarchical ones."""

_REDUCTIONS = ((1 / 16, 8), (1 / 6, 4), (1 / 2, 2))
"""(largest factor, reduction) of JPEGs that are to be shrunk. The decoder leaves out high frequencies, where averaging pixels damps them:
the more averaging follows, the smaller the difference. At these factors it is about 2 of 255 in the mean over VOC's photographs, and tens
on stripes or chequers of a few pixels that are no multiple of the reduction: averaging in two steps beats with them in another way."""

_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,  # the flag's own bit: `IMREAD_REDUCED_COLOR_2` says BGR as well
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def read_image(image: Path | bytes, *, name: str | None = None, orient: bool = False, reduction: int = 1) -> np.ndarray:
    """Decode a color or gray image; an alpha channel is dropped.

    Args:
        image: a file, or its contents.
        name: what to call it in an error; the path where there is one.
        orient: turn the picture as its EXIF orientation says. Off by default: masks are drawn on the stored pixels.
        reduction: 1, or for a JPEG 2, 4 or 8, by which its sides are divided while it is decoded, and rounded up.

    Returns:
        u8[H,W,3], RGB.

    Raises:
        DataError: the file is missing, unreadable, truncated or not an image.
    """
    name = name or _name(image)
    data = _contents(image, name)
    if _is_truncated(data):
        raise DataError(
            f"{name}: the image is truncated ({len(data)} bytes, its end is missing); copy or download the file again"
        )
    flags = cv2.IMREAD_COLOR_RGB | (0 if orient else cv2.IMREAD_IGNORE_ORIENTATION) | _REDUCED[reduction]
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(
            f"{name}: OpenCV cannot decode the image ({error.err}); replace the file or convert it to JPEG or PNG"
        ) from error
    if pixels is None:
        raise DataError(f"{name}: not a readable image ({len(data)} bytes); use JPEG, PNG or another format that OpenCV reads")
    return np.asarray(pixels, np.uint8)


def read_mask(
    mask: Path | bytes,
    num_classes: int | LabelMap,
    *,
    void: tuple[int, ...] = (IGNORE_INDEX,),
    palette: Mapping[Color, int] | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Decode a mask to labels; see `fcn_jax.data.labels` for the rules.

    Args:
        mask: a file, or its contents; of a lossless format.
        num_classes: labels 0 to `num_classes - 1` are classes; or what the stored values mean, instead of `void` and `palette`.
        void: labels that become `IGNORE_INDEX`.
        palette: RGB color -> label. Where it is given, colors decide for indexed masks, too.
        name: what to call it in an error; the path where there is one.

    Returns:
        u8[H,W] of labels 0 to `num_classes - 1` or `IGNORE_INDEX`.

    Raises:
        DataError: the file is missing, unreadable or lossy; it is in colors without a palette, or with one that lacks a
            color; it holds a label that is neither a class nor void.
    """
    name = name or _name(mask)
    return to_labels(read_stored_mask(mask, name=name), label_map(num_classes, void, palette), name=name)


def read_stored_mask(mask: Path | bytes, *, name: str | None = None) -> StoredMask:
    """Decode a mask to the values that its file stores, before they become labels.

    Args:
        mask: a file, or its contents; of a lossless format.
        name: what to call it in an error; the path where there is one.

    Raises:
        DataError: the file is missing, unreadable or lossy, or its pixels are neither gray, indexed nor RGB.
    """
    name = name or _name(mask)
    data = _contents(mask, name)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            kind, mode = opened.format, opened.mode
            colors = opened.getpalette("RGB") if mode == "P" else None
            pixels = np.asarray(opened.convert("RGB") if mode in _COLOR_MODES else opened)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: cannot decode the mask ({error}); copy the file again or save it as PNG") from error
    if kind == "JPEG":
        raise DataError(f"{name}: a mask must not be a JPEG, whose compression changes labels; save it as an indexed or gray PNG")
    if mode not in (*_COLOR_MODES, *_GRAY_MODES):
        raise DataError(
            f"{name}: a mask of Pillow mode {mode!r}; save it as an 8-bit indexed or gray PNG whose values are the labels"
        )
    table = None
    if colors is not None:
        table = np.zeros((256, 3), np.uint8)
        table.reshape(-1)[: len(colors)] = colors
    return StoredMask(np.array(pixels, np.uint8), table)


def decode_record(
    record: Record,
    num_classes: int | LabelMap,
    *,
    void: tuple[int, ...] = (IGNORE_INDEX,),
    palette: Mapping[Color, int] | None = None,
    factor: float = 1.0,
) -> Example:
    """Decode an image and its mask, and resize them; see `read_image`, `read_mask` and `fcn_jax.data.transforms.resize`.

    Args:
        record: the encoded pair.
        num_classes: labels 0 to `num_classes - 1` are classes; or what the stored values mean, instead of `void` and `palette`.
        void: labels that become `IGNORE_INDEX`.
        palette: RGB color -> label. Where it is given, colors decide for indexed masks, too.
        factor: of the resize, over 0. A JPEG that is to be shrunk to half or less is decoded at a fraction of its size, which takes less
            time and memory; its mask is decoded whole.

    Returns:
        The decoded pair, of one size.

    Raises:
        DataError: as `read_image` and `read_mask`, or the two differ in size.
    """
    image_name = str(record.image) if isinstance(record.image, Path) else f"image of {record.id}"
    data = _contents(record.image, image_name)
    size = _jpeg_layout(data)[0] if data.startswith(_JPEG) else None
    # Where less than a pixel is left in height or width, that pixel would have to be enlarged again.
    reducible = size is not None and min(size) * factor >= 1
    reduction = next((by for largest, by in _REDUCTIONS if reducible and factor <= largest), 1)
    image = read_image(data, name=image_name, reduction=reduction)
    mask_name = str(record.mask) if isinstance(record.mask, Path) else f"mask of {record.id}"
    mask = read_mask(record.mask, num_classes, void=void, palette=palette, name=mask_name)
    (ih, iw), (mh, mw) = size if size and reduction > 1 else image.shape[:2], mask.shape
    if (ih, iw) != (mh, mw):
        raise DataError(
            f"{mask_name}: the mask is {mw}x{mh} (width x height) but its image {record.id} is {iw}x{ih}; "
            "export the mask at the image's size (an editor may have turned or scaled one of them)"
        )
    return resize(Example(record.id, image, mask), factor, reduction=reduction)


def _name(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else f"{len(source)} bytes in memory"


def _contents(source: Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            data = source.read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"{name}: the file does not exist; check the path") from error
        except OSError as error:
            raise DataError(f"{name}: cannot read the file ({error.strerror}); check the path and its permissions") from error
    if not data:
        raise DataError(f"{name}: the file is empty; copy or download it again")
    return data


def _is_truncated(data: bytes) -> bool:
    """Whether the end of the image is missing, which OpenCV does not report: it fills the rest with gray."""
    if data.startswith(_JPEG):
        # Inside the compressed data 0xff is always followed by 0, so an end marker after the first scan is the real one. Before
        # it there may be a thumbnail with an end marker of its own.
        scan = _jpeg_layout(data)[1]
        return scan is None or data.rfind(b"\xff\xd9", scan) < 0
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND") < 0
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        return "truncated" in str(error)
    return False


def _jpeg_layout(jpeg: bytes) -> tuple[tuple[int, int] | None, int | None]:
    """A JPEG's height and width, and the offset of its first scan.

    The first is None where the image cannot be decoded at a fraction of it, or does not say how high it is before its scan; either is
    where the file ends or goes wrong before it.
    """
    size, at = None, 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xDA:
            return size, at
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            at += 2
        else:
            if marker in _DCT_FRAMES:
                height, width = (int.from_bytes(jpeg[start : start + 2], "big") for start in (at + 5, at + 7))
                size = (height, width) if height and width else None
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return size, None
