"""NumPy's `.npy` files: images of any number of channels, and masks.

Reference: `numpy.lib.format`. Files of Python objects are refused, because reading them runs code.
"""

from __future__ import annotations

import ast
import math
import struct
from typing import Any, NamedTuple

import numpy as np

from fcn_jax.data.images.limits import PILLOW_ERRORS, check_size, damaged
from fcn_jax.errors import DataError

SIGNATURE = b"\x93NUMPY"

_IMAGES = {"u": 2, "i": 2, "f": 8}
"""Kinds of numbers of images, and the most bytes of each."""

_LABELS = {"u": 8, "i": 8, "f": 8}
"""The same of masks, whose values are checked in any case."""


class Npy(NamedTuple):
    """The header of a file.

    Attributes:
        dtype: of the numbers.
        shape: (H, W) or (H, W, C).
        fortran: whether the first axis varies fastest.
        start: position of the first number in the file.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    start: int

    @property
    def is_wide(self) -> bool:
        """Whether numbers may lie outside 0 to 255."""
        return self.dtype != np.uint8


def parse(data: Any, name: str, *, labels: bool = False) -> Npy:
    """Read the header.

    Args:
        data: the file: bytes, or an object that gives bytes when it is sliced.
        name: the name of the file in an error.
        labels: whether it is a mask, which may hold whole numbers of any type.

    Raises:
        DamagedError: the header is cut off or not NumPy's.
        DataError: the array is no image: it has another number of axes, too many pixels, or numbers
            of a type that is not read.
    """
    try:
        size_form, at = ("<H", 10) if data[6] == 1 else ("<I", 12)
        (length,) = struct.unpack(size_form, data[8:at])
        text = data[at : at + length]
        if len(text) < length or length > 10_000:
            raise ValueError("its header is cut off")
        header = ast.literal_eval(text.decode("latin1"))
        dtype, shape = np.dtype(header["descr"]), tuple(map(int, header["shape"]))
        fortran = bool(header["fortran_order"])
    except (*PILLOW_ERRORS, RecursionError, MemoryError) as error:
        raise damaged(".npy file", name, error) from error
    if not 0 < dtype.itemsize <= (_LABELS if labels else _IMAGES).get(dtype.kind, 0):
        raise DataError(
            f"{name}: an array of {dtype.name}; save it as uint8, uint16 or float32, as with "
            "np.save(path, array.astype(np.float32))"
        )
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise DataError(
            f"{name}: an array of shape {shape}; an image has the shape (height, width) or "
            "(height, width, channels)"
        )
    check_size(shape[0], shape[1], name)
    return Npy(dtype, shape, fortran, at + length)


def decode(data: bytes, name: str, *, labels: bool = False) -> np.ndarray:
    """The numbers of an image or mask, [H,W] or [H,W,C] in native byte order.

    Takes what `parse` takes.

    Raises:
        DamagedError: the file is truncated.
        DataError: as for `parse`.
    """
    header = parse(data, name, labels=labels)
    expected = header.start + header.dtype.itemsize * math.prod(header.shape)
    if len(data) < expected:
        raise damaged(
            ".npy file", name, f"it is truncated: {len(data)} bytes, {expected} are expected"
        )
    values = np.frombuffer(data, header.dtype, math.prod(header.shape), header.start)
    values = values.reshape(header.shape, order="F" if header.fortran else "C")
    return np.ascontiguousarray(values, header.dtype.newbyteorder("="))
