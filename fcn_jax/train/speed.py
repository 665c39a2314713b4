"""Speed of training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Speed:
    """Time of the steps since the last record, without pauses, and time spent waiting for input."""

    def __init__(self, batch_size: int, start: int) -> None:
        """Start after step `start`, with `batch_size` images per step."""
        self._batch_size = batch_size
        self._last = 0.0
        self.restart(start)

    def restart(self, step: int) -> None:
        """Start again after a step."""
        self._start, self._began, self._waited = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of a `with` block as time spent waiting for input."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of a `with` block."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def images_per_second(self, step: int) -> float:
        """Return the speed up to a completed step; before the first one, the last known speed."""
        if step > self._start:
            seconds = time.perf_counter() - self._began
            self._last = (step - self._start) * self._batch_size / seconds
        return self._last

    def figures(self, step: int) -> dict[str, float]:
        """Return the means over the steps up to `step`, at least one, for `metrics.jsonl`."""
        rate = self.images_per_second(step)
        return {
            "step_seconds": self._batch_size / rate,
            "images_per_second": rate,
            "input_wait_seconds": self._waited / (step - self._start),
        }
