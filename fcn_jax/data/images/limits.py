"""Limits and errors that all image formats share."""

from __future__ import annotations

import struct

from fcn_jax.errors import DamagedError, DataError

MAX_PIXELS = 2**28
"""The largest height times width that is decoded, 0.8 GB of RGB. A header can claim any size."""

PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError,
    struct.error,
)  # fmt: skip
"""The exceptions that Pillow raises for damaged files."""


def check_size(height: int, width: int, name: str) -> None:
    """Raise `DataError` if a picture has no pixels or more than `MAX_PIXELS`."""
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise DataError(
            f"{name}: the file says it is {width}x{height} (width x height); pictures of 1 to "
            f"{MAX_PIXELS} pixels are decoded"
        )


def damaged(kind: str, name: str, reason: object) -> DamagedError:
    """The error for a damaged file of a kind, such as "PNG"."""
    return DamagedError(
        f"{name}: the {kind} is damaged ({reason}); copy or download the file again"
    )
