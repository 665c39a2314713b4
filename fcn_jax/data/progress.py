"""Progress of a pass over a dataset's files."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class PassProgress:
    """A bar on a terminal; elsewhere a line every 15 seconds. A context manager."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        """Prepare the bar.

        Args:
            what: what is being done, such as "reading masks".
            total: number of files.
            stream: where to show it; standard error if not given.
        """
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._what, self._total, self._done, self._said = what, total, 0, time.monotonic()
        self._console = Console(file=stream or sys.stderr)
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(
            *columns, console=self._console, disable=not self._console.is_terminal, transient=True
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> PassProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Count files that are done."""
        self.show(min(self._done + count, self._total), self._total)

    def show(self, done: int, total: int) -> None:
        """Show that `done` of `total` files are done."""
        self._done = done
        self._bar.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and time.monotonic() - self._said >= 15:
            self._said = time.monotonic()
            self._console.print(
                f"{self._what}: {done} of {total}", highlight=False, markup=False, soft_wrap=True
            )
