"""Sizes of images by their headers."""

from __future__ import annotations

import io
import mmap
from pathlib import Path

from PIL import Image

from fcn_jax.data.images import formats, orientation
from fcn_jax.data.images.limits import PILLOW_ERRORS
from fcn_jax.errors import DataError


def image_size(image: Path | bytes) -> tuple[int, int] | None:
    """Height and width of an upright image by its header; None if the header cannot be read."""
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            width, height = opened.size
            turn = orientation.from_exif(opened.info.get("exif") or b"")
    except (*PILLOW_ERRORS, Image.DecompressionBombError):
        return _size_without_pillow(image)
    return (width, height) if orientation.swaps_sides(turn) else (height, width)


def _size_without_pillow(image: Path | bytes) -> tuple[int, int] | None:
    """As `image_size`, for TIFFs of many channels and `.npy` files."""
    try:
        if isinstance(image, bytes):
            return formats.stored_size(image, "image")
        with (
            image.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents,
        ):
            return formats.stored_size(contents, str(image))
    except (DataError, OSError, ValueError):  # an empty file cannot be mapped
        return None
