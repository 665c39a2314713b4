"""What Orbax and TensorStore say: kept from the terminal, and cut to what a user can use."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

SILENCED: list[contextlib.ExitStack] = []
"""After a failed save, its threads may go on reporting until the process ends: what was silenced stays so."""


@contextlib.contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """Orbax and absl log every file; only what went wrong is for the user."""
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
    """After a failed save, TensorStore's threads report to an event loop that is closed by then; Python would print that."""
    before = sys.unraisablehook
    system = sys  # at the interpreter's end the module's own name is gone

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
    """Why a save failed."""
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
    """An error's gist: TensorStore puts whole specifications, and Python objects, into its messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    line = (
        re.split(r"\s*[\[(]?<(?:bound method|function|class|object|[\w.]+ object at)", line)[
            0
        ].rstrip(" :,;=")
        or type(error).__name__
    )
    return line if len(line) <= 160 else f"{line[:160]}..."
