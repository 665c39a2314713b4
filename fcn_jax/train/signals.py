"""A clean stop on Ctrl-C and SIGTERM."""

from __future__ import annotations

import _thread
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from signal import Signals
from types import FrameType
from typing import Any

_TOGETHER = 1.0
"""Seconds in which further signals belong to the first one. `timeout`, `torchrun` and schedulers
signal a process and its group, so that it receives the signal twice."""

_PATIENCE = 2.0
"""Seconds in which the main thread must react while there is nothing to save."""


class StopNow(BaseException):
    """A stop was requested while there was nothing to save."""


class StopRequest:
    """Context manager in which the first SIGINT or SIGTERM requests a stop instead of killing.

    A signal that follows at least a second later has its usual effect.

    Python calls signal handlers only between its own instructions, so none runs while XLA compiles,
    which may take minutes. A thread therefore watches for signals, too. It ends the process if the
    main thread does not react, and there is nothing to save.

    Attributes:
        signal: the received signal, or None.
        at_once: raise `StopNow` on a signal. Otherwise it is only stored in `signal`.
    """

    signal: Signals | None = None
    at_once: bool = True
    _since = 0.0

    def __init__(self, announce: Callable[[Signals, bool], None] | None = None) -> None:
        """Take a function that tells other processes about a signal, and whether this one ends."""
        self._announce, self._previous = announce, dict[Signals, Any]()
        self._has_come = self._is_known = False

    def receive(self, number: Signals) -> None:
        """Treat a signal to another process as one to this process. Called by another thread."""
        if self.signal is None and not self._has_come:
            self._is_known = True
            if self._previous:
                _thread.interrupt_main(number)
            else:
                self.signal = number

    def __enter__(self) -> StopRequest:
        """Install the handlers, unless in another thread than the main one: Python forbids that."""
        if threading.current_thread() is threading.main_thread():
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(
                target=self._watch, args=(reader,), name="signals", daemon=True
            ).start()
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handlers."""
        if self._previous:
            self._restore()
            signal.set_wakeup_fd(self._previous_writer)
            os.close(self._writer)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
            if self.at_once:
                raise StopNow
        elif time.monotonic() - self._since >= _TOGETHER:
            self._restore()
            os.kill(os.getpid(), number)

    def _watch(self, reader: int) -> None:
        """End the process where the main thread does not. The reader ends with the context."""
        numbers = self._previous
        first: float | None = None
        deadline: float | None = None
        with os.fdopen(reader, "rb", buffering=0) as file:
            while True:
                left = None if deadline is None else max(deadline - time.monotonic(), 0)
                if select.select([file], [], [], left)[0]:
                    if not (received := file.read(1)):
                        return
                    if received[0] not in numbers:
                        continue
                    if first is None:
                        first, number = time.monotonic(), received[0]
                        deadline, self._has_come = first + _PATIENCE, True
                        if self._announce is not None and not self._is_known:
                            self._announce(signal.Signals(number), False)
                    elif received[0] == signal.SIGTERM and time.monotonic() - first >= _TOGETHER:
                        os._exit(128 + signal.SIGTERM)
                else:
                    if self.signal is None and self.at_once:
                        name = signal.Signals(number).name
                        if self._announce is not None:
                            self._announce(signal.Signals(number), True)
                        os.write(2, f"fcn-jax: stopped by {name}: nothing is written\n".encode())
                        os._exit(128 + number)
                    deadline = None
