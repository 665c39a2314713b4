"""Masks in MATLAB files, as SBD has them: u8[H,W] at `GTcls.Segmentation`."""

from __future__ import annotations

import io

import numpy as np

from fcn_jax.errors import DamagedError, DataError

SIGNATURE = b"MATLAB 5.0 MAT-file"


def segmentation(data: bytes, name: str) -> np.ndarray:
    """The class of each pixel of one of SBD's files in `cls/`.

    Args:
        data: the contents of the file.
        name: the name of the file in an error.

    Returns:
        u8[H,W].

    Raises:
        DamagedError: the file is truncated or corrupt.
        DataError: the file holds something else.
    """
    from scipy import io as scipy_io

    try:
        found = scipy_io.loadmat(io.BytesIO(data), variable_names=["GTcls"])
    except Exception as error:  # SciPy's reader raises errors of many kinds on corrupt data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(
            f"{name}: the MATLAB file is truncated or corrupt ({reason}); unpack it again"
        ) from error
    try:
        values = found["GTcls"]["Segmentation"][0, 0]
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"{name}: a MATLAB file without GTcls.Segmentation, which SBD's files in cls/ hold; "
            "masks of other datasets must be images"
        ) from error
    if values.ndim != 2 or values.dtype != np.uint8 or not values.size:
        raise DataError(
            f"{name}: GTcls.Segmentation is {values.dtype}{list(values.shape)}; expected "
            "uint8[H, W]"
        )
    return np.ascontiguousarray(values)
