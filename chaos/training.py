"""The training processes, and what their run directory says about them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcn_jax.runtime.launch import free_port
from tests.helpers import scenes

STEPS, STEPS_PER_EVALUATION, STEPS_PER_CHECKPOINT = 48, 12, 3

RECIPE = f"""
[model]
backbone = "tiny"

[data]
dataset = "folder"
batch_size = 4
crop_size = [48, 48]

[optim]
lr = 0.05
ema_decay = 0.9

[train]
epochs = {STEPS // 4}
eval_every_epochs = {STEPS_PER_EVALUATION // 4}
checkpoint_every_steps = {STEPS_PER_CHECKPOINT}
log_every_steps = 1
num_visualizations = 1
"""
"""The backbone is that of the tests, which compiles in seconds and has dropout."""

CONNECT_SECONDS = 30
"""Seconds in which several processes must be connected."""

_UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp.*")
_LEFTOVER = re.compile(
    r".*\.orbax-checkpoint-tmp.*|\d+\.(deleted|damaged)|\..+\.[0-9a-f]{8}(\..+)?|process\.json"
)


class Dataset:
    """Images and a recipe in a folder, from which all trainings start."""

    def __init__(self, folder: Path) -> None:
        """Write them."""
        folder.mkdir(parents=True)
        self.images = scenes.write_scenes(folder / "images", train=16, val=12)
        self.recipe = scenes.write_recipe(folder, RECIPE)
        self.programs = folder / "cache"


class Training:
    """The processes of one training, from their start to their end; also of a resumed one."""

    def __init__(self, data: Dataset, run: Path, *, workers: int, processes: int = 1) -> None:
        """Start or resume the run with this number of input workers in each process."""
        self.run, self.began = run, time.monotonic()
        address = f"127.0.0.1:{free_port()}"
        self._log = [tempfile.TemporaryFile("w+") for _ in range(processes)]  # noqa: SIM115
        self.processes = [
            subprocess.Popen(
                _command(data, run, workers, address, index, processes),
                env=_environment(data),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for index, log in enumerate(self._log)
        ]

    def is_running(self) -> bool:
        """Return whether all processes run."""
        return all(process.poll() is None for process in self.processes)

    def wait(self, seconds: float) -> bool:
        """Wait until all processes have ended; return whether they did within the time."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                return False
        return True

    def end(self) -> None:
        """Kill everything that is left of the training."""
        for process in self.processes:
            for member in [process.pid, *self.members(process)]:
                try:
                    os.kill(member, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()
        for log in self._log:
            log.close()

    def statuses(self) -> list[int]:
        """Return the exit statuses; -N after a kill by signal N."""
        return [process.wait() for process in self.processes]

    def statuses_from(self, first: int) -> list[int]:
        """Return the exit statuses, beginning with that of process `first`."""
        statuses = self.statuses()
        return [*statuses[first:], *statuses[:first]]

    def output(self) -> str:
        """Return what the processes printed so far."""
        texts = []
        for log in self._log:
            log.seek(0)
            texts.append(log.read())
        return "\n".join(texts)

    def members(self, process: subprocess.Popen[bytes]) -> list[int]:
        """Return the other living processes of a process's session, such as its input workers."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if int(session) == process.pid and int(folder.name) != process.pid and state != "Z":
                found.append(int(folder.name))
        return sorted(found)

    def input_workers(self, process: subprocess.Popen[bytes]) -> list[int]:
        """Return the input workers of a process."""
        found = []
        for member in self.members(process):
            try:
                if b"spawn_main" in Path(f"/proc/{member}/cmdline").read_bytes():
                    found.append(member)
            except OSError:
                continue
        return found


def _command(
    data: Dataset, run: Path, workers: int, address: str, index: int, processes: int
) -> list[str]:
    """Return the command that starts a training, and resumes it if it has begun."""
    more = ["--set", f"data.num_workers={workers}"]
    if processes > 1:
        more += ["--coordinator", address, "--process-id", str(index)]
        more += ["--num-processes", str(processes), "--connect-timeout", str(CONNECT_SECONDS)]
    return scenes.command(*scenes.arguments(data.recipe, data.images, run, *more))


def _environment(data: Dataset) -> dict[str, str]:
    return {
        **scenes.environment(),
        "FCN_JAX_CACHE": str(data.programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "OMP_NUM_THREADS": "1",
    }


class State:
    """What a run directory says at one moment."""

    def __init__(self, run: Path, before: State | None = None) -> None:
        """Read it. What did not change is taken from the state `before`."""
        self.records: list[dict[str, Any]] = []
        try:
            self._text = (run / "metrics.jsonl").read_text()
        except FileNotFoundError:
            self._text = ""
        if before is not None and before._text == self._text:
            self.records = before.records
        else:
            for line in self._text.split("\n")[:-1]:
                with contextlib.suppress(ValueError):  # a line that a kill cut off
                    self.records.append(json.loads(line))
        try:
            names = [path.name for path in (run / "checkpoints").iterdir()]
        except FileNotFoundError:
            names = []
        self.checkpoints = sorted(int(name) for name in names if name.isdecimal())
        self.is_saving = any(map(_UNFINISHED.fullmatch, names))

    def count(self, event: str) -> int:
        """Return the number of records of an event."""
        return sum(record["event"] == event for record in self.records)

    @property
    def step(self) -> int:
        """The last recorded step."""
        return max((r["step"] for r in self.records if r["event"] == "train"), default=0)

    @property
    def resumed_at(self) -> int:
        """The step from which the last process started."""
        return next((r["step"] for r in reversed(self.records) if r["event"] == "compile"), 0)

    @property
    def is_evaluating(self) -> bool:
        """Whether an evaluation is due, and its record is missing."""
        due = self.step and self.step % STEPS_PER_EVALUATION == 0
        scored = [r["step"] for r in self.records if r["event"] == "val"]
        saved = [r["step"] for r in self.records if r["event"] == "checkpoint"]
        return bool(due) and self.step in saved and self.step not in scored

    @property
    def has_ended(self) -> bool:
        """Whether the last process has recorded its end."""
        return bool(self.records) and self.records[-1]["event"] == "end"

    def where(self, starts: int) -> str:
        """Describe what the process did.

        Args:
            starts: the number of processes that had begun to train before it.
        """
        if self.count("compile") <= starts:
            return "start"
        parts = ["save"] * self.is_saving + ["evaluation"] * self.is_evaluating
        return " and ".join(parts) or ("end" if self.has_ended else "steps")


def leftovers(run: Path) -> Sequence[str]:
    """Return the files and folders that an interrupted process left."""
    return sorted(
        str(path.relative_to(run)) for path in run.rglob("*") if _LEFTOVER.fullmatch(path.name)
    )
