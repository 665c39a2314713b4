"""Image files of every format to their stored pixels, not yet turned or scaled to 8 bits."""

from __future__ import annotations

import dataclasses
import io
import struct
from typing import Any

import cv2
import numpy as np
from PIL import Image

from fcn_jax.data.images import jpeg, orientation, png, tiff
from fcn_jax.data.images.limits import check_size
from fcn_jax.errors import DamagedError, DataError

# OpenCV logs to standard error, without a file's name, what is raised here with one.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_EIGHT_BIT_SIGNATURES = (jpeg.SIGNATURE, b"BM", b"GIF8", b"RIFF")

PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    EOFError,
    struct.error,
)
"""What Pillow raises for files that are damaged in one way or another."""


@dataclasses.dataclass(frozen=True)
class Wide:
    """The pixels of an image of more than 8 bits.

    Attributes:
        values: [H,W,C] stored numbers; C is 1 (gray), 3 (RGB) or 4 (CMYK).
        declared: the stored numbers for black and white that the file declares; None where it
            declares none.
        inverted: the lowest number is white.
    """

    values: np.ndarray
    declared: tuple[float, float] | None = None
    inverted: bool = False

    @property
    def is_float(self) -> bool:
        """Whether the numbers are floating point."""
        return self.values.dtype.kind == "f"


def decode(data: bytes, name: str, reduction: int = 1) -> tuple[np.ndarray | Wide, int]:
    """Decode an image as stored.

    Args:
        data: the file.
        name: what to call it in an error.
        reduction: 1, or for a JPEG 2, 4 or 8, by which its sides are divided while it is decoded,
            and rounded up.

    Returns:
        The pixels, u8[H,W,3] RGB or `Wide`, and the EXIF orientation, 1 to 8. An alpha channel is
        dropped.

    Raises:
        DamagedError: the file is truncated or corrupt, or not an image.
        DataError: the image is too large, or of a kind that is not decoded.
    """
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.decode(data, name, reduction), jpeg.exif_orientation(data)
    if data.startswith(png.SIGNATURE):
        parsed = png.parse(data, name)
        pixels = parsed.image()
        return (
            pixels if parsed.depth < 16 else Wide(pixels, _declared_by_png(parsed, pixels))
        ), parsed.orientation
    if data.startswith(tiff.SIGNATURES):
        tags = tiff.parse(data, name)
        return _of_tiff(tags, data), tags.orientation
    return _by_pillow(data, name)


def may_be_wide(contents: Any, name: str) -> bool:
    """Whether an image may have more than 8 bits, by its header alone.

    Args:
        contents: the file: bytes, or what gives bytes when it is sliced.
        name: what to call it in an error.

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
    """Open and decode a file of a format that has no reader of its own here; see `decode`."""
    if data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise DamagedError(
            f"{name}: the image is truncated ({len(data)} bytes, its end is missing); copy or download it again"
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
        raise DamagedError(
            f"{name}: the image is damaged ({error}); copy or download the file again"
        ) from error
    return opened


def _other_kind(data: bytes) -> str | None:
    """What a file is that is whole, and no image that can be read here; with advice."""
    head = data[:512].lstrip().lower()
    if data[4:8] == b"ftyp":
        return "a HEIC photograph or a video; convert it to JPEG or PNG"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image; run git lfs pull"
    if head.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page, not an image: the download failed; download it again"
    if head.startswith((b"<svg", b"<?xml")):
        return "an XML or SVG file, not a raster image; export it as PNG"
    kinds = {
        b"%PDF": "a PDF",
        b"PK\x03\x04": "a zip archive",
        b"8BPS": "a Photoshop file",
        b"\x1f\x8b": "a gzip archive",
    }
    found = next((kind for magic, kind in kinds.items() if data.startswith(magic)), None)
    return f"{found}, not an image; export it as JPEG or PNG" if found else None


def is_lossy_webp(data: bytes) -> bool:
    """Whether a WebP file holds a picture of its lossy kind."""
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
    turn = orientation.from_exif(opened.info.get("exif") or b"")
    if opened.mode in _WIDE_MODES:
        # Of a PGM, Pillow scales the values so that 65535 is what the file declares to be white.
        declared = (0.0, 65535.0) if opened.format == "PPM" else None
        return Wide(np.asarray(opened)[..., None], declared), turn
    if opened.mode not in _EIGHT_BIT_MODES:
        raise DataError(f"{name}: an image of Pillow mode {opened.mode!r}; save it as gray or RGB")
    opened.info.pop("transparency", None)  # of which Pillow would warn
    return np.array(opened.convert("RGB")), turn


def _of_tiff(tags: tiff.Tiff, data: bytes) -> np.ndarray | Wide:
    channels, alpha, photometric = tags.channels, tags.has_alpha, tags.photometric
    kinds = {
        tiff.WHITE_IS_ZERO: {1: 1, 2 if alpha else 1: 1},
        # Many writers call colors gray that have three channels.
        tiff.BLACK_IS_ZERO: {1: 1, 2 if alpha else 1: 1, 3: 3, 4 if alpha else 3: 3},
        tiff.RGB: {3: 3, 4: 3},
        tiff.INDEXED: {1: 1, 2 if alpha else 1: 1},
        tiff.CMYK: {4: 4, 5 if alpha else 4: 4},
        tiff.YCBCR: {3: 3} if tags.is_lossy else {},
    }
    kept = kinds.get(photometric, {}).get(channels)
    if kept is None:
        raise DataError(
            f"{tags.name}: a TIFF of {channels} channels and photometric interpretation {photometric}; "
            "save it as gray, RGB, RGBA or CMYK"
        )
    values = tiff.samples(tags, data)[..., :kept]
    if photometric == tiff.INDEXED:
        return _colored(values[..., 0], tags)
    inverted = photometric == tiff.WHITE_IS_ZERO
    if tags.is_wide:
        declared = 2.0**tags.declared_bits - 1
        return Wide(
            values, (0.0, declared) if declared and values.max() <= declared else None, inverted
        )
    if tags.bits < 8:
        values = np.rint(np.arange(2**tags.bits) * (255 / (2**tags.bits - 1))).astype(np.uint8)[
            values
        ]
    return rgb(255 - values if inverted else values)


def _colored(index: np.ndarray, tags: tiff.Tiff) -> np.ndarray:
    colors = tags.colors
    if index.max() >= len(colors):
        raise DamagedError(
            f"{tags.name}: the TIFF is damaged (a color is wanted that its table lacks); copy the file again"
        )
    return colors[index]


def _declared_by_png(parsed: png.Png, pixels: np.ndarray) -> tuple[float, float] | None:
    bits = parsed.significant_bits
    if not 8 <= bits < 16:
        return None
    # By the standard, values of fewer bits are shifted up to 16, the lowest bits zero or a copy of
    # the highest. Some writers leave them as they are.
    low = pixels & (2 ** (16 - bits) - 1)
    shifted = ((low == 0) | (low == pixels >> bits)).all()
    return (0.0, 65535.0) if shifted or pixels.max() >= 2**bits else (0.0, 2.0**bits - 1)
