"""A clean stop on Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopNow(BaseException):
    """A stop was requested while there was nothing to save."""


class StopRequest:
    """Context manager in which the first SIGINT or SIGTERM requests a stop instead of killing.

    A second signal has its usual effect.

    Attributes:
        signal: the received signal, or None.
        at_once: raise `StopNow` on a signal. Otherwise it is only stored in `signal`.
    """

    signal: signal.Signals | None = None
    at_once: bool = True

    def __enter__(self) -> StopRequest:
        """Install the handlers, unless in another thread than the main one: Python forbids that."""
        self._previous: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handlers."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        if self.at_once:
            raise StopNow
