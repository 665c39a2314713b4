"""What a run writes and shows while it trains."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import jax

from fcn_jax.errors import WriteError
from fcn_jax.runtime import json_text
from fcn_jax.runtime.atomic import write_text

_PACKAGES = (
    "fcn-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "opencv-python-headless",
    "pillow",
)


def versions() -> dict[str, Any]:
    """Python, platform, packages and devices of this process; JSON-able."""
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    devices = [f"{device.platform}: {device.device_kind}" for device in jax.devices()]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "devices": devices,
    }


def peak_memory() -> float:
    """Largest memory use so far in GiB: the device's own count where it has one, else this process's resident set."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [int(s["peak_bytes_in_use"]) for s in stats if "peak_bytes_in_use" in s]
    if used:
        return max(used) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Records:
    """`metrics.jsonl`: a JSON object a line, each with the step after which it was measured."""

    def __init__(self, path: Path, after_step: int, *, evaluate_again: bool = False) -> None:
        """Open for appending, and drop records after `after_step`: a run that goes on from there will write them again.

        With `evaluate_again`, records of that step's evaluation are dropped, too.

        Raises:
            WriteError: the file cannot be written.
        """
        self._path = path
        try:
            if path.exists():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                last = (after_step, "val") if evaluate_again else (after_step, "")
                kept = [
                    line
                    for line in lines
                    if _step_of(line) <= after_step and (_step_of(line), _event_of(line)) != last
                ]
                write_text(path, "".join(f"{line}\n" for line in kept))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error

    def write(self, **record: Any) -> None:
        """Add a record; numbers that are not finite become null. Raises `WriteError`."""
        try:
            self._file.write(json_text.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise WriteError(
                f"{self._path}: cannot be written ({error.strerror or error})"
            ) from error

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # of a record that `write` has failed on
            self._file.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut off by a kill


def _event_of(line: str) -> str:
    return str(json.loads(line).get("event"))


class Window:
    """The steps since the last record: how long they took, pauses left out, and how long the input kept them waiting."""

    def __init__(self, batch_size: int, start: int) -> None:
        """Begin after step `start`; each step sees `batch_size` images."""
        self._batch_size = batch_size
        self._last = 0.0
        self.restart(start)

    def restart(self, step: int) -> None:
        """Begin anew after a step."""
        self._start, self._began, self._waited = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as spent waiting for input."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def pause(self, seconds: float) -> None:
        """Leave out time that something else took."""
        self._began += seconds

    def images_per_second(self, step: int) -> float:
        """Speed up to a step that has just been completed, or the last known where none has been since the beginning."""
        if step > self._start:
            self._last = (
                (step - self._start) * self._batch_size / (time.perf_counter() - self._began)
            )
        return self._last

    def figures(self, step: int) -> dict[str, float]:
        """What `metrics.jsonl` says of them once `step`, at least one, has been completed; means over the steps."""
        rate = self.images_per_second(step)
        return {
            "step_seconds": self._batch_size / rate,
            "images_per_second": rate,
            "input_wait_seconds": self._waited / (step - self._start),
        }


class Progress:
    """A live bar with loss, images/s and time left; on an output that is no terminal, a line now and then."""

    def __init__(self, total: int, done: int, stream: TextIO | None = None) -> None:
        """Start at `done` of `total` steps."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self._console = Console(file=stream or sys.stderr)
        self._total = total
        self._live = self._console.is_terminal
        self._printed = -math.inf
        self._bar = Bar(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.1f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            disable=not self._live,
            speed_estimate_period=120,
        )
        self._task = self._bar.add_task(
            "train", total=total, completed=done, epoch=0, loss=float("nan"), rate=0.0
        )
        self._bar.start()

    def update(self, step: int, epoch: int, loss: float, rate: float) -> None:
        """Show the state after a step; `rate` is in images/s."""
        self._bar.update(self._task, completed=step, epoch=epoch, loss=loss, rate=rate)
        now = time.monotonic()
        if not self._live and (now - self._printed >= 15 or step == self._total):
            self._printed = now
            self.say(
                f"epoch {epoch}, step {step}/{self._total}: loss {loss:.4f}, {rate:.1f} images/s"
            )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()
