"""`metrics.jsonl` of a run. Of several processes, only the first one writes it."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any, TextIO

from fcn_jax.runtime import distributed, json_text
from fcn_jax.runtime.atomic import write_errors, write_text


class Records:
    """A file with one JSON object per line; each has the step after which it was measured."""

    def __init__(self, path: Path, after_step: int, *, evaluate_again: bool = False) -> None:
        """Open the file for appending, and drop the records that the run will write again.

        Args:
            path: the file.
            after_step: the run continues after this step; later records are dropped.
            evaluate_again: also drop the evaluation of that step.

        Raises:
            WriteError: the file cannot be written.
        """
        self._path = path
        self._file: TextIO | None = None
        if not distributed.is_first():
            return
        with write_errors(path):
            if path.exists():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                dropped = (after_step, "val") if evaluate_again else None
                kept = [
                    line
                    for line in lines
                    if (key := _step_and_event(line))[0] <= after_step and key != dropped
                ]
                write_text(path, "".join(f"{line}\n" for line in kept))
            self._file = path.open("a", encoding="utf-8")

    def write(self, **record: Any) -> None:
        """Append a record; numbers that are not finite become null. Raises `WriteError`."""
        if self._file is None:
            return
        with write_errors(self._path):
            self._file.write(json_text.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # `write` has raised it already
                self._file.close()


def _step_and_event(line: str) -> tuple[float, Any]:
    try:
        record = json.loads(line)
        return float(record["step"]), record.get("event")
    except (ValueError, KeyError, TypeError):
        return math.inf, None  # a line that a kill cut off
