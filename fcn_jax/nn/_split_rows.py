"""Programs for images whose rows are split over devices.

XLA's partitioner exchanges rows at the borders of the parts. It gathers an array that is cut into
blocks of rows, unless each part has whole blocks, and one whose rows are merged with the images.
The operators that would do so ask here.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_PARTS: contextvars.ContextVar[int] = contextvars.ContextVar("parts", default=1)


@contextlib.contextmanager
def split_rows(parts: int) -> Iterator[None]:
    """Trace programs for images whose rows are split into `parts`, at least 1."""
    token = _PARTS.set(parts)
    try:
        yield
    finally:
        _PARTS.reset(token)


def rows_are_split() -> bool:
    """Whether rows are split, so that merging them with the images would gather the array."""
    return _PARTS.get() > 1


def block_rows(needed: int) -> int:
    """Return the number of rows of blocks to compute, at least `needed`: a multiple of the parts.

    It is `needed` if rows are not split.
    """
    return needed + -needed % _PARTS.get()
