"""A trace of some steps of a run, for Perfetto and XProf."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fcn_jax.errors import ConfigError

FOLDER = "profile"
_WARM_UP = 2
"""Steps that are not traced if only their number is given: the first ones take longer."""


class Steps(NamedTuple):
    """The steps to trace.

    Attributes:
        number: how many, at least 1.
        first: number of the first one, from 1; None for one shortly after the start.
    """

    number: int
    first: int | None = None

    def after(self, start: int, total: int) -> range:
        """Return the numbers of the steps.

        Args:
            start: the last step that is already taken.
            total: the last step of the run.

        Raises:
            ConfigError: the run does not take these steps.
        """
        first = self.first
        if first is None:
            first = min(start + 1 + _WARM_UP, total - self.number + 1)
        last = first + self.number - 1
        if first <= start or last > total:
            asked = str(self.number) if self.first is None else f"{first}:{last}"
            left = f"takes the steps {start + 1} to {total}" if start < total else "has none left"
            raise ConfigError(f"--profile {asked}: the run {left}; choose among those")
        return range(first, last + 1)


class Profile:
    """Traces steps. A failure is a warning: the training is worth more than its trace."""

    def __init__(self, run: Path, steps: range, say: Callable[[str], None]) -> None:
        """Take the run directory, the steps, which may be none, and a function that prints."""
        self._folder, self._steps, self._say = run / FOLDER, steps, say
        self._open = contextlib.ExitStack()
        self._is_tracing = False

    def before_step(self, number: int) -> None:
        """Start the trace before its first step, and mark the step."""
        if number not in self._steps:
            return
        with self._warning():
            if number == self._steps[0]:
                self._folder.mkdir(parents=True, exist_ok=True)  # fails before the trace starts
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # calls of functions would hide the steps
                jax.profiler.start_trace(
                    self._folder, create_perfetto_trace=True, profiler_options=options
                )
                self._is_tracing = True
            self._open.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=number))

    def after_step(self, number: int, state: Any) -> None:
        """End the mark, and after the last step write the trace. `state` is awaited before."""
        if number not in self._steps:
            return
        if number == self._steps[-1]:
            jax.block_until_ready(state)
        self._open.close()
        if number == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Write what is traced so far, if the trace is not written yet."""
        self._open.close()
        if not self._is_tracing:
            return
        self._is_tracing = False
        with self._warning():
            jax.profiler.stop_trace()
            written = max(
                self._folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime
            )
            self._say(
                f"profile of {len(self._steps)} steps from {self._steps[0]} on: open {written} at "
                f"https://ui.perfetto.dev, or run: xprof --logdir {self._folder}"
            )

    @contextlib.contextmanager
    def _warning(self) -> Any:
        try:
            yield
        except Exception as error:  # of the profiler, a plugin of XLA, or the disk
            self._say(
                f"warning: the profile cannot be written ({type(error).__name__}: {error}); the "
                "training goes on"
            )
            self._steps = range(0)
