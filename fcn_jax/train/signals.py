"""A clean stop on Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopNow(BaseException):
    """A stop was asked for while there was nothing to save."""


class StopRequest:
    """Context in which the first SIGINT or SIGTERM asks for a stop instead of killing; the second acts as it always did.

    Attributes:
        signal: the signal that came, or None.
        at_once: raise `StopNow` when a signal comes. Otherwise it is only noted in `signal`.
    """

    signal: signal.Signals | None = None
    at_once: bool = True

    def __enter__(self) -> StopRequest:
        """Take over the two signals; outside the main thread, where Python allows no handlers, do nothing."""
        self._previous: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        if self.at_once:
            raise StopNow
