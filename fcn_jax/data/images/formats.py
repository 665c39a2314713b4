"""Image files of every format, decoded to their stored pixels.

The pixels are neither turned upright nor scaled to 8 bits yet.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import cv2
import numpy as np
from PIL import Image

from fcn_jax.data.images import jpeg, npy, orientation, png, tiff
from fcn_jax.data.images.limits import PILLOW_ERRORS, check_size, damaged
from fcn_jax.data.images.tiff_samples import samples
from fcn_jax.errors import DamagedError, DataError

# OpenCV logs errors to standard error without a file's name; they are raised here with one.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_EIGHT_BIT_SIGNATURES = (jpeg.SIGNATURE, b"BM", b"GIF8", b"RIFF")
_OTHER_KINDS = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive",
    b"8BPS": "a Photoshop file",
    b"\x1f\x8b": "a gzip archive",
}


@dataclasses.dataclass(frozen=True)
class Wide:
    """The pixels of an image of more than 8 bits.

    Attributes:
        values: [H,W,C] stored numbers.
        declared: the stored numbers for black and white that the file declares; None if it declares
            none.
        inverted: whether the lowest number is white.
    """

    values: np.ndarray
    declared: tuple[float, float] | None = None
    inverted: bool = False

    @property
    def is_float(self) -> bool:
        """Whether the numbers are floating point."""
        return self.values.dtype.kind == "f"


def decode(
    data: bytes, name: str, reduction: int = 1, channels: int = 3
) -> tuple[np.ndarray | Wide, int]:
    """Decode an image as stored.

    Args:
        data: the file.
        name: the name of the file in an error.
        reduction: 1, or for a JPEG 2, 4 or 8, by which its sides are divided during decoding,
            rounded up.
        channels: C. For 3, the picture in RGB that a viewer shows, without alpha. For 1, its gray.
            Otherwise all channels of the file, of which there must be C.

    Returns:
        The pixels, u8[H,W,C] or `Wide` (with `channels` of 3, its values may be gray or CMYK; see
        `fitted`), and the EXIF orientation, 1 to 8.

    Raises:
        DamagedError: the file is truncated or corrupt, or not an image.
        DataError: the image is too large, has another number of channels, or is of a kind that is
            not decoded.
    """
    if data.startswith(jpeg.SIGNATURE):
        pixels, turn = jpeg.decode(data, name, reduction), jpeg.exif_orientation(data)
        return fitted(pixels, channels, name), turn
    if data.startswith(npy.SIGNATURE):
        return _of_npy(data, name, channels), 1
    if data.startswith(png.SIGNATURE):
        parsed = png.parse(data, name)
        return _of_png(parsed, channels), parsed.orientation
    if data.startswith(tiff.SIGNATURES):
        tags = tiff.parse(data, name)
        return _of_tiff(tags, data, channels), tags.orientation
    return _by_pillow(data, name, channels)


def may_be_wide(contents: Any, name: str) -> bool:
    """Whether an image may have more than 8 bits, by its header alone.

    Args:
        contents: the file: bytes, or an object that gives bytes when it is sliced.
        name: the name of the file in an error.

    Raises:
        DamagedError: a TIFF's tags or a header are cut off.
    """
    head = contents[:25]
    if head.startswith(png.SIGNATURE):
        return len(head) == 25 and head[24] == 16
    if head.startswith(tiff.SIGNATURES):
        return tiff.parse(contents, name).is_wide
    if head.startswith(npy.SIGNATURE):
        return npy.parse(contents, name).is_wide
    return not head.startswith(_EIGHT_BIT_SIGNATURES)


def stored_size(contents: Any, name: str) -> tuple[int, int] | None:
    """Height and width as stored, of the kinds that Pillow cannot open; None for other kinds.

    Takes and raises as `may_be_wide` does.
    """
    head = contents[:25]
    if head.startswith(tiff.SIGNATURES):
        return tiff.parse(contents, name).size
    if head.startswith(npy.SIGNATURE):
        height, width = npy.parse(contents, name).shape[:2]
        return height, width
    return None


def rgb(pixels: np.ndarray, name: str = "") -> np.ndarray:
    """[H,W,3] of [H,W,C] in gray (C = 1), RGB (3) or CMYK (4, u8 only), of one type.

    `name` is the image's in the error for CMYK of more than 8 bits.
    """
    if pixels.shape[2] == 1:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB))
    if pixels.shape[2] == 4:
        if pixels.dtype != np.uint8:
            raise DataError(f"{name}: a CMYK image of more than 8 bits; save it as RGB")
        return np.array(Image.fromarray(pixels, "CMYK").convert("RGB"))
    return np.ascontiguousarray(pixels)


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in gray, as in ITU-R BT.601, OpenCV and Pillow."""


def fitted(pixels: np.ndarray, channels: int, name: str, *, has_alpha: bool = False) -> np.ndarray:
    """Stored pixels [H,W,C] with `channels` channels.

    Args:
        pixels: numbers of any type: gray, gray and alpha, RGB, RGBA, or other channels.
        channels: the number of channels of the result. One is made from RGB.
        name: the name of the image in an error.
        has_alpha: whether the last channel is alpha, which gray does not keep.

    Raises:
        DataError: there is another number of channels.
    """
    there = pixels.shape[2]
    if there == channels:
        return pixels
    if channels == 1 and has_alpha:
        pixels = pixels[..., :-1]
    if channels == 1 and pixels.shape[2] == 1:
        return pixels
    if channels == 1 and pixels.shape[2] == 3:
        gray = pixels.astype(np.float32) @ _LUMA
        gray = gray if pixels.dtype.kind == "f" else np.rint(gray)
        return gray.astype(pixels.dtype)[..., None]
    raise DataError(
        f"{name}: the image has {there} channels, but the model takes {channels}; set "
        f"model.in_channels = {there} if all images have {there}, or save the image with {channels}"
    )


def open_by_pillow(data: bytes, name: str) -> Image.Image:
    """Open and decode a file of a format that Pillow reads; raises as `decode` does."""
    if data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise DamagedError(
            f"{name}: the image is truncated ({len(data)} bytes, its end is missing); copy or "
            "download it again"
        )
    try:
        opened: Image.Image = Image.open(io.BytesIO(data))
        check_size(opened.height, opened.width, name)
        opened.load()
    except Image.UnidentifiedImageError as error:
        if other := _other_kind(data):
            raise DataError(f"{name}: {other}") from error
        raise DamagedError(
            f"{name}: not a readable image ({len(data)} bytes); use JPEG, PNG, TIFF, BMP or WebP"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: the image is too large ({error})") from error
    except PILLOW_ERRORS as error:
        raise damaged("image", name, error) from error
    return opened


def pillow_orientation(opened: Image.Image) -> int:
    """The EXIF orientation of a picture that Pillow opened, 1 to 8."""
    return orientation.from_exif(opened.info.get("exif") or b"")


def _other_kind(data: bytes) -> str | None:
    """The kind of an intact file that is not an image that can be read here, with advice."""
    head = data[:512].lstrip().lower()
    if data[4:8] == b"ftyp":
        return "a HEIC photograph or a video; convert it to JPEG or PNG"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image; run git lfs pull"
    if head.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page, not an image: the download failed; download it again"
    if head.startswith((b"<svg", b"<?xml")):
        return "an XML or SVG file, not a raster image; export it as PNG"
    found = next((kind for magic, kind in _OTHER_KINDS.items() if data.startswith(magic)), None)
    return f"{found}, not an image; export it as JPEG or PNG" if found else None


def is_lossy_webp(data: bytes) -> bool:
    """Whether a WebP file holds a picture of the lossy kind."""
    at = 12
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"VP8 ":
            return True
        # A frame of an animation holds its picture after 16 bytes.
        at += 8 + 16 if kind == b"ANMF" else 8 + length + length % 2
    return False


def _by_pillow(data: bytes, name: str, channels: int) -> tuple[np.ndarray | Wide, int]:
    opened = open_by_pillow(data, name)
    turn = pillow_orientation(opened)
    if opened.mode in _WIDE_MODES:
        # Pillow scales the values of a PGM so that 65535 is the white that the file declares.
        declared = (0.0, 65535.0) if opened.format == "PPM" else None
        values = np.asarray(opened)[..., None]
        return Wide(values if channels == 3 else fitted(values, channels, name), declared), turn
    if opened.mode not in _EIGHT_BIT_MODES:
        raise DataError(f"{name}: an image of Pillow mode {opened.mode!r}; save it as gray or RGB")
    opened.info.pop("transparency", None)  # Pillow would warn of it
    kept = opened.mode in ("L", "LA", "RGBA") and channels != 3
    pixels = np.array(opened if kept else opened.convert("RGB"))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return fitted(pixels, channels, name, has_alpha=kept and opened.mode != "L"), turn


def _of_npy(data: bytes, name: str, channels: int) -> np.ndarray | Wide:
    values = npy.decode(data, name)
    values = values.reshape(*values.shape[:2], -1)
    count = values.shape[2]
    if channels == 3 and count == 1:
        return rgb(values) if values.dtype == np.uint8 else Wide(values)
    if count != channels == values.shape[0]:
        raise DataError(
            f"{name}: an array of shape {values.shape}, whose first axis may be the {channels} "
            "channels of the model; the last one has to be, as in np.moveaxis(array, 0, -1)"
        )
    values = fitted(values, channels, name)
    return values if values.dtype == np.uint8 else Wide(values)


def _of_png(parsed: png.Png, channels: int) -> np.ndarray | Wide:
    if channels == 3 or parsed.color == png.INDEXED or parsed.depth < 8:
        # As a viewer shows it; the channels of gray are equal.
        pixels, has_alpha = parsed.image(), False
        if channels != 3 and parsed.color == png.GRAY:
            pixels = pixels[..., :1]
    else:
        pixels = parsed.values()
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        has_alpha = parsed.color in (png.GRAY_ALPHA, png.RGBA)
    if parsed.depth < 16:
        return fitted(np.ascontiguousarray(pixels), channels, parsed.name, has_alpha=has_alpha)
    declared = _declared_by_png(parsed, pixels)
    return Wide(fitted(pixels, channels, parsed.name, has_alpha=has_alpha), declared)


def _of_tiff(tags: tiff.Tiff, data: bytes, channels: int) -> np.ndarray | Wide:
    photometric, colors = tags.photometric, tags.color_channels
    count = colors if channels == 3 else tags.channels
    if not count:
        raise DataError(
            f"{tags.name}: a TIFF of {tags.channels} channels and photometric interpretation "
            f"{photometric}; save it as gray, RGB, RGBA or CMYK, or, to train on all channels, set "
            f"model.in_channels = {tags.channels}"
        )
    values = samples(tags, data)[..., :count]
    inverted = photometric == tiff.WHITE_IS_ZERO
    if photometric == tiff.INDEXED:
        index, table = values[..., 0], tags.colors
        if index.max() >= len(table):
            raise tags.damaged("a pixel's color is missing in its table")
        values = table[index]
    elif tags.is_wide:
        white = 2.0**tags.declared_bits - 1
        declared = (0.0, white) if white and values.max() <= white else None
        return Wide(_channels_of_tiff(tags, values, channels), declared, inverted)
    elif tags.bits < 8:
        white = 2**tags.bits - 1
        values = np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)[values]
    values = 255 - values if inverted else values
    return rgb(values) if channels == 3 else _channels_of_tiff(tags, values, channels)


def _channels_of_tiff(tags: tiff.Tiff, values: np.ndarray, channels: int) -> np.ndarray:
    if channels == 3:
        return values
    has_alpha = 0 < tags.color_channels < values.shape[2]
    return fitted(values, channels, tags.name, has_alpha=has_alpha)


def _declared_by_png(parsed: png.Png, pixels: np.ndarray) -> tuple[float, float] | None:
    bits = parsed.significant_bits
    if not 8 <= bits < 16:
        return None
    # By the standard, values of fewer bits are shifted up to 16, and the lowest bits are zero or a
    # copy of the highest. Some writers leave the values as they are.
    low = pixels & (2 ** (16 - bits) - 1)
    shifted = ((low == 0) | (low == pixels >> bits)).all()
    return (0.0, 65535.0) if shifted or pixels.max() >= 2**bits else (0.0, 2.0**bits - 1)
