"""Messages of Orbax and TensorStore: silenced, or shortened for users."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

_OBJECT = re.compile(r"\s*[\[(]?<(?:bound method|function|class|object|[\w.]+ object at)")
"""Matches the start of a Python object in a message."""

SILENCED: list[contextlib.ExitStack] = []
"""Kept until the process ends, since threads of a failed save may report until then."""


@contextlib.contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """Silence Orbax and absl, which log every file, except for errors."""
    with contextlib.ExitStack() as stack:
        for logger in (logging.getLogger("absl"), logging.getLogger("asyncio")):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
        yield


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Silence TensorStore's threads, which use a closed event loop after a failed save."""
    before = sys.unraisablehook
    system = sys  # the global name may be gone when the interpreter exits

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if system.unraisablehook is hook:
            system.unraisablehook = before


def reason(error: BaseException) -> str:
    """The reason why a save failed."""
    full = {errno.ENOSPC: "no space left on the disk", errno.EDQUOT: "the disk quota is used up"}
    for number, what in full.items():
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return what
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error, without the Python objects in TensorStore's messages."""
    line = (str(error).strip().splitlines() or [""])[0]
    line = _OBJECT.split(line)[0].rstrip(" :,;=") or type(error).__name__
    return line if len(line) <= 160 else f"{line[:160]}..."
