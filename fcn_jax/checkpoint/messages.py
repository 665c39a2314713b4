"""Messages of Orbax and TensorStore: silenced, or shortened for users."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

SILENCED: list[contextlib.ExitStack] = []
"""Kept until the process ends, since threads of a failed save may report until then."""


@contextlib.contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """Silence Orbax and absl, which log every file, except for errors."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, earlier in zip(loggers, before, strict=True):
            logger.setLevel(earlier)


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
    if (
        isinstance(error, OSError) and error.errno == errno.ENOSPC
    ) or "No space left on device" in str(error):
        return "no space left on the disk"
    if (isinstance(error, OSError) and error.errno == errno.EDQUOT) or "Disk quota exceeded" in str(
        error
    ):
        return "the disk quota is used up"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error, without the Python objects in TensorStore's messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    line = (
        re.split(r"\s*[\[(]?<(?:bound method|function|class|object|[\w.]+ object at)", line)[
            0
        ].rstrip(" :,;=")
        or type(error).__name__
    )
    return line if len(line) <= 160 else f"{line[:160]}..."
