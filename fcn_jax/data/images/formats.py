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

from fcn_jax.data.images import jpeg, orientation, png, tiff
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
        values: [H,W,C] stored numbers; C is 1 (gray), 3 (RGB) or 4 (CMYK).
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


def decode(data: bytes, name: str, reduction: int = 1) -> tuple[np.ndarray | Wide, int]:
    """Decode an image as stored, without an alpha channel.

    Args:
        data: the file.
        name: the name of the file in an error.
        reduction: 1, or for a JPEG 2, 4 or 8, by which its sides are divided during decoding,
            rounded up.

    Returns:
        The pixels, u8[H,W,3] RGB or `Wide`, and the EXIF orientation, 1 to 8.

    Raises:
        DamagedError: the file is truncated or corrupt, or not an image.
        DataError: the image is too large, or of a kind that is not decoded.
    """
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.decode(data, name, reduction), jpeg.exif_orientation(data)
    if data.startswith(png.SIGNATURE):
        parsed = png.parse(data, name)
        pixels = parsed.image()
        if parsed.depth < 16:
            return pixels, parsed.orientation
        return Wide(pixels, _declared_by_png(parsed, pixels)), parsed.orientation
    if data.startswith(tiff.SIGNATURES):
        tags = tiff.parse(data, name)
        return _of_tiff(tags, data), tags.orientation
    return _by_pillow(data, name)


def may_be_wide(contents: Any, name: str) -> bool:
    """Whether an image may have more than 8 bits, by its header alone.

    Args:
        contents: the file: bytes, or an object that gives bytes when it is sliced.
        name: the name of the file in an error.

    Raises:
        DamagedError: a TIFF's tags are cut off.
    """
    head = contents[:25]
    if head.startswith(png.SIGNATURE):
        return len(head) == 25 and head[24] == 16
    if head.startswith(tiff.SIGNATURES):
        return tiff.parse(contents, name).is_wide
    return not head.startswith(_EIGHT_BIT_SIGNATURES)


def rgb(pixels: np.ndarray) -> np.ndarray:
    """u8[H,W,3] of u8[H,W,C] in gray (C = 1), RGB (3) or CMYK (4)."""
    if pixels.shape[2] == 1:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB))
    if pixels.shape[2] == 4:
        return np.array(Image.fromarray(pixels, "CMYK").convert("RGB"))
    return np.ascontiguousarray(pixels)


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


def _by_pillow(data: bytes, name: str) -> tuple[np.ndarray | Wide, int]:
    opened = open_by_pillow(data, name)
    turn = pillow_orientation(opened)
    if opened.mode in _WIDE_MODES:
        # Pillow scales the values of a PGM so that 65535 is the white that the file declares.
        declared = (0.0, 65535.0) if opened.format == "PPM" else None
        return Wide(np.asarray(opened)[..., None], declared), turn
    if opened.mode not in _EIGHT_BIT_MODES:
        raise DataError(f"{name}: an image of Pillow mode {opened.mode!r}; save it as gray or RGB")
    opened.info.pop("transparency", None)  # Pillow would warn of it
    return np.array(opened.convert("RGB")), turn


def _of_tiff(tags: tiff.Tiff, data: bytes) -> np.ndarray | Wide:
    photometric = tags.photometric
    if not tags.color_channels:
        raise DataError(
            f"{tags.name}: a TIFF of {tags.channels} channels and photometric interpretation "
            f"{photometric}; save it as gray, RGB, RGBA or CMYK"
        )
    values = samples(tags, data)[..., : tags.color_channels]
    if photometric == tiff.INDEXED:
        index, table = values[..., 0], tags.colors
        if index.max() >= len(table):
            raise tags.damaged("a pixel's color is missing in its table")
        return table[index]
    inverted = photometric == tiff.WHITE_IS_ZERO
    if tags.is_wide:
        white = 2.0**tags.declared_bits - 1
        return Wide(values, (0.0, white) if white and values.max() <= white else None, inverted)
    if tags.bits < 8:
        white = 2**tags.bits - 1
        values = np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)[values]
    return rgb(255 - values if inverted else values)


def _declared_by_png(parsed: png.Png, pixels: np.ndarray) -> tuple[float, float] | None:
    bits = parsed.significant_bits
    if not 8 <= bits < 16:
        return None
    # By the standard, values of fewer bits are shifted up to 16, and the lowest bits are zero or a
    # copy of the highest. Some writers leave the values as they are.
    low = pixels & (2 ** (16 - bits) - 1)
    shifted = ((low == 0) | (low == pixels >> bits)).all()
    return (0.0, 65535.0) if shifted or pixels.max() >= 2**bits else (0.0, 2.0**bits - 1)
