"""Progress of a task that takes a while."""

from __future__ import annotations

import io
import math
import sys
import threading
import time
from typing import Any, TextIO, cast

from fcn_jax.runtime import distributed

_PERIOD = 10.0
"""Seconds between lines if the output is not a terminal."""


class _Nowhere(io.TextIOBase):
    """A stream that drops what it receives."""

    def write(self, text: str) -> int:
        return len(text)


class Progress:
    """A live bar on a terminal; elsewhere a line every 10 seconds. A context manager.

    Of several processes, only the first one prints.

    Lines are also printed without an update, so that an item that takes long is no silence.

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
        self._text, self._ended = "", threading.Event()
        silent = stream is None and not distributed.is_first()
        self._console = Console(file=cast(TextIO, _Nowhere()) if silent else stream or sys.stderr)
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
        else:
            threading.Thread(target=self._repeat, name="progress", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._live:
            self._bar.stop()

    def update(self, done: int, total: int | None = None, text: str = "") -> None:
        """Show that `done` items are done, of `total` if that has changed, and a text."""
        self._done, self._total, self._text = done, total or self._total, text
        self._bar.update(self._task, completed=done, total=self._total, text=text)
        self._print_line(self._keep and done == self._total)

    def _repeat(self) -> None:
        """Print lines during items that take long, until the task ends."""
        while not self._ended.wait(_PERIOD):
            self._print_line()

    def _print_line(self, now: bool = False) -> None:
        """Print the state if the output is not a terminal and the last line is old, or `now`."""
        time_now = time.monotonic()
        if not self._live and (now or time_now - self._printed >= _PERIOD):
            self._printed = time_now
            of = "" if self._total is None else f" of {self._total}"
            text = self._text and f", {self._text}"
            self.say(f"{self._title}: {self._done}{of}{text}")

    def advance(self, count: int = 1) -> None:
        """Show that `count` more items are done."""
        done = self._done + count
        self.update(done if self._total is None else min(done, self._total))

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
