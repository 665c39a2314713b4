"""Progress of a task that takes a while."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, TextIO

_PERIOD = 15.0
"""Seconds between lines if the output is not a terminal."""


class Progress:
    """A live bar on a terminal; elsewhere a line every 15 seconds. A context manager.

    Use:
        with Progress("reading masks", len(files)) as progress:
            for file in files:
                ...
                progress.advance()
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        *,
        done: int = 0,
        unit: str = "",
        keep: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        """Prepare the bar.

        Args:
            title: the task, such as "reading masks".
            total: number of items, or None if it is not known yet.
            done: number of items that are done already.
            unit: "bytes" shows sizes and speed.
            keep: leave the bar when the task ends; if the output is not a terminal, also print a
                line at the first update and when all is done.
            stream: output; standard error by default.
        """
        from rich import progress
        from rich.console import Console

        self._title, self._total, self._done, self._keep = title, total, done, keep
        self._console = Console(file=stream or sys.stderr)
        self._live = self._console.is_terminal
        self._printed = -math.inf if keep else time.monotonic()
        counts: tuple[Any, ...] = (progress.MofNCompleteColumn(),)
        if unit == "bytes":
            counts = (progress.DownloadColumn(), progress.TransferSpeedColumn())
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            *counts,
            progress.TextColumn("{task.fields[text]}", markup=False),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            disable=not self._live,
            speed_estimate_period=120,
            transient=not keep,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, text="")

    def __enter__(self) -> Progress:
        if self._live:  # before rich 14.3, a disabled bar ends with an empty line
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bar.stop()

    def update(self, done: int, total: int | None = None, text: str = "") -> None:
        """Show that `done` items are done, of `total` if that has changed, and a text."""
        self._done, self._total = done, total or self._total
        self._bar.update(self._task, completed=done, total=self._total, text=text)
        now = time.monotonic()
        last = self._keep and done == self._total
        if not self._live and (last or now - self._printed >= _PERIOD):
            self._printed = now
            of = "" if self._total is None else f" of {self._total}"
            self.say(f"{self._title}: {done}{of}{text and f', {text}'}")

    def advance(self, count: int = 1) -> None:
        """Show that `count` more items are done."""
        done = self._done + count
        self.update(done if self._total is None else min(done, self._total))

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
