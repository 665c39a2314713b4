"""A contender in a process of its own: it shares no threads with the others, and its memory is its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.setting import Setting
from benchmarks.tasks import Contender
from fcn_jax.memory import keep_freed_memory


class Worker:
    """Runs one contender's task when told to.

    Attributes:
        answer: what the first call came to.
        first_seconds: how long it took, compilation included.
    """

    def __init__(self, contender: Contender, task: str, setting: Setting) -> None:
        """Start the process, prepare the task and run it once. Raises `RuntimeError` with the process's own words if that fails."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender, task, setting), daemon=False)
        self._process.start()
        theirs.close()
        self.answer, self.first_seconds = self._ask("first")

    def __call__(self) -> None:
        """Run the task once."""
        self._ask("call")

    def close(self) -> int:
        """End the process; the most memory it held beyond what it held before the task was prepared, in bytes."""
        peak = self._ask("close")
        self._process.join()
        return int(peak)

    def _ask(self, what: str) -> Any:
        self._pipe.send(what)
        try:
            ok, found = self._pipe.recv()
        except EOFError as error:
            raise RuntimeError("a contender's process ended by itself") from error
        if not ok:
            raise RuntimeError(found)
        return found


def _serve(pipe: Connection, contender: Contender, task: str, setting: Setting) -> None:
    try:
        keep_freed_memory()  # as the library's commands do; every contender gains by it
        _import(contender)
        before = _start_peak()
        call = None
        while True:
            what = pipe.recv()
            if what == "first":
                call = contender.prepare(task, setting)
                began = time.perf_counter()
                answer = np.asarray(call())
                pipe.send((True, (answer, time.perf_counter() - began)))
                del answer
            elif what == "call":
                assert call is not None
                call()
                pipe.send((True, None))
            else:
                pipe.send((True, _peak() - before))
                return
    except Exception as error:
        pipe.send((False, f"{contender.name}, {task}: {type(error).__name__}: {error}"))


def _import(contender: Contender) -> None:
    """Load the libraries, whose size is not the task's."""
    import benchmarks.jax_tasks

    if contender.framework == "torch":
        import benchmarks.torch_tasks  # noqa: F401


def _start_peak() -> int:
    """Forget what importing held at most, where the system can; what is held now, in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
