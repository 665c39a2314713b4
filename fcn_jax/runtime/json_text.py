"""JSON as RFC 8259 defines it. All JSON that this package writes goes through `dumps`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Serialize a value.

    Numbers that are not finite become null, because JSON has neither NaN nor infinity. NumPy
    scalars and arrays become numbers and lists.

    Args:
        value: nested mappings, sequences, strings, numbers, booleans and None.
        indent: spaces per level; None writes a single line.

    Returns:
        The JSON text, without a line break at its end.

    Raises:
        TypeError: the value contains an object that JSON cannot express.
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
