"""JPEG files to pixels.

The decoder's warnings count as damage: it fills parts that it cannot decode with gray, or shifts
them.
"""

from __future__ import annotations

import io
import re

import numpy as np
import simplejpeg
from PIL import JpegImagePlugin

from fcn_jax.data.images import orientation
from fcn_jax.data.images.limits import PILLOW_ERRORS, check_size, damaged
from fcn_jax.errors import DataError

SIGNATURE = b"\xff\xd8"

_HARMLESS = (
    "Unknown Adobe color transform code",
    "Warning: unknown JFIF revision number",
    "Invalid SOS parameters for sequential JPEG",
    "Corrupt JPEG data: bad ICC marker",
)
"""Beginnings of libjpeg's warnings after which the pixels are right."""

_ODD_SUBSAMPLING = "Could not determine subsampling level"
"""TurboJPEG's error for CMYK pictures with subsampled chroma, which libjpeg itself decodes."""


def stored_size(data: bytes, name: str) -> tuple[int, int]:
    """Height and width as stored, before the picture is turned upright.

    Raises:
        DamagedError: the header is corrupt.
        DataError: the picture is too large, or of a kind that is not decoded.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        # `_opened` raises unless the header is readable in spite of the warning.
        width, height = _opened(data, name, str(error)).size
    check_size(height, width, name)
    return height, width


def exif_orientation(data: bytes) -> int:
    """The orientation in the EXIF data before the picture, 1 to 8; 1 if there is none."""
    at = data.find(b"\xff", 2)
    while 0 <= at < len(data) - 4:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in (0xDA, 0xD9):
            break
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # markers without a length
            at = data.find(b"\xff", at + 2)
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                return orientation.from_exif(data[at + 10 : at + 2 + length])
            # Like the decoder, skip stray bytes before the next marker.
            at = data.find(b"\xff", at + 2 + length)
    return 1


def decode(data: bytes, name: str, reduction: int = 1) -> np.ndarray:
    """Decode the pixels as stored.

    Args:
        data: the file.
        name: the name of the file in an error.
        reduction: 1, 2, 4 or 8, by which the sides are divided during decoding, rounded up.

    Returns:
        u8[H,W,3], RGB.

    Raises:
        DamagedError: the file is truncated or corrupt.
        DataError: the picture is too large, or of a kind that is not decoded.
    """
    height, width = stored_size(data, name)
    target = {}
    if reduction > 1:
        down, across = -(-height // reduction), -(-width // reduction)
        target = {"min_height": down, "min_width": across, "min_factor": reduction}
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=True, **target))
    except ValueError as error:
        opened = _opened(data, name, str(error))
    opened.draft("RGB", (max(1, width // reduction), max(1, height // reduction)))
    try:
        return np.array(opened.convert("RGB"))
    except PILLOW_ERRORS as error:
        raise damaged("JPEG", name, error) from error


def _opened(data: bytes, name: str, warning: str) -> JpegImagePlugin.JpegImageFile:
    """The picture, opened by Pillow, if its pixels are right in spite of the warning.

    Pillow uses the same decoder, which gives the same pixels, and ignores warnings.
    """
    if re.search("Unsupported JPEG|not (supported|implemented|compiled in)", warning):
        raise DataError(
            f"{name}: a kind of JPEG that cannot be decoded ({warning}); save it as a JPEG of 8 "
            "bits, or as PNG or TIFF"
        )
    is_odd = _ODD_SUBSAMPLING in warning
    if not warning.startswith(_HARMLESS) and not is_odd:
        raise damaged("JPEG", name, warning)
    try:
        opened = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except PILLOW_ERRORS as error:
        raise damaged("JPEG", name, warning) from error
    if is_odd and opened.mode != "CMYK":
        raise damaged("JPEG", name, warning)
    return opened
