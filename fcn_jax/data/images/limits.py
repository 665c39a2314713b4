"""The largest picture that is decoded."""

from __future__ import annotations

from fcn_jax.errors import DataError

MOST_PIXELS = 2**28
"""Height times width; 2**28 pixels are 0.8 GB of RGB. A header of a few bytes can claim any
size."""


def check_size(height: int, width: int, name: str) -> None:
    """Raise `DataError` where a picture has no pixels or more than `MOST_PIXELS`."""
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise DataError(
            f"{name}: the file says it is {width}x{height} (width x height); 1 to {MOST_PIXELS} pixels are decoded"
        )
