"""Each contender runs in its own process, so that contenders share no threads and no memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.setting import Setting
from benchmarks.tasks import INFERENCE, INPUT, Contender, in_a_row
from fcn_jax.runtime import process
from fcn_jax.runtime.memory import trim_malloc


@contextlib.contextmanager
def workers(
    task: str, setting: Setting, contenders: Iterable[Contender], cache: Path | None = None
) -> Iterator[dict[str, Worker]]:
    """Start a process for each contender, prepare them in turn, and end them on exit.

    Args:
        task: the task that all run.
        setting: model, inputs and device.
        contenders: the contenders.
        cache: folder for compiled programs, with a subfolder for each contender; by default the
            environment variables of JAX and PyTorch decide.

    Yields:
        Name of the contender -> its process.
    """
    started: dict[str, Worker] = {}
    try:
        for number, contender in enumerate(contenders):
            started[contender.name] = Worker(
                contender, task, setting, cache and cache / str(number)
            )
        for worker in started.values():
            worker.wait_for_imports()
        for name, worker in started.items():
            worker.prepare()
            print(
                f"{task}: {name} is ready, its first call took {worker.first_seconds:.1f} s",
                flush=True,
            )
        yield started
        for worker in started.values():
            worker.wait()
    finally:
        for worker in started.values():
            worker.kill()


class Worker:
    """A process that runs the task of one contender on request.

    Attributes:
        answer: result of the first run.
        first_seconds: duration of the first run, including compilation.
        first_bytes: peak memory of the process until the end of the first run, less its memory
            before the task was prepared.
    """

    answer: np.ndarray
    first_seconds: float
    first_bytes: int

    def __init__(
        self, contender: Contender, task: str, setting: Setting, cache: Path | None = None
    ) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        self._pipe, remote_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(remote_end, contender, task, setting, cache), daemon=False
        )
        self._process.start()
        remote_end.close()

    def wait_for_imports(self) -> None:
        """Wait until the process has imported its libraries. Raises as `prepare` does."""
        self._receive()

    def prepare(self) -> None:
        """Prepare the task and run it once. Raises `RuntimeError` if the process fails."""
        self.answer, self.first_seconds, self.first_bytes = self._request("first")

    def __call__(self) -> None:
        """Run the task `tasks.in_a_row` times and wait."""
        self._request("call")

    def close(self) -> int:
        """Ask the process to end; returns its peak memory in bytes.

        On a GPU, this is the peak of GPU memory, including the first run. On a CPU, it is the peak
        of the process after the first run, less its memory before the task was prepared.
        """
        return int(self._request("close"))

    def wait(self) -> None:
        """Wait until the process has ended after `close`, but at most 30 seconds."""
        self._process.join(30)

    def kill(self) -> None:
        """Kill the process if it has not ended."""
        self._process.kill()
        self._process.join()

    def _request(self, what: str) -> Any:
        self._pipe.send(what)
        return self._receive()

    def _receive(self) -> Any:
        try:
            ok, found = self._pipe.recv()
        except EOFError as error:
            raise RuntimeError("a contender's process ended unexpectedly") from error
        if not ok:
            raise RuntimeError(found)
        return found


def _serve(
    pipe: Connection, contender: Contender, task: str, setting: Setting, cache: Path | None
) -> None:
    try:
        # The library's commands configure their process so. Every contender benefits from it.
        process.configure_process(trains=task not in INFERENCE)
        if cache:
            _keep_compiled_programs(cache)
        _import(contender)
        pipe.send((True, None))
        before = _start_peak()
        work, times = None, in_a_row(task, setting)
        while True:
            what = pipe.recv()
            if what == "first":
                work = contender.prepare(task, setting)
                began = time.perf_counter()
                answer = work.on_host(work())
                pipe.send((True, (answer, time.perf_counter() - began, _peak() - before)))
                del answer
                trim_malloc()  # as in `fcn_jax.train.loop` after the first step
                _start_peak()
            elif what == "call":
                assert work is not None
                work(times)
                pipe.send((True, None))
            else:
                pipe.send(
                    (
                        True,
                        _peak_on_gpu(contender)
                        if setting.device == "cuda" and task not in INPUT
                        else _peak() - before,
                    )
                )
                return
    except Exception as error:
        pipe.send((False, f"{contender.name}, {task}: {type(error).__name__}: {error}"))


def _keep_compiled_programs(folder: Path) -> None:
    import jax  # already imported, so its environment variable has no effect any more

    jax.config.update("jax_compilation_cache_dir", str(folder))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _import(contender: Contender) -> None:
    """Import the libraries before memory is measured."""
    import benchmarks.jax_tasks

    if contender.framework == "torch":
        import benchmarks.torch_tasks  # noqa: F401


def _start_peak() -> int:
    """Reset the peak memory if the system supports it; returns the current memory in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _peak_on_gpu(contender: Contender) -> int:
    if contender.framework == "torch":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import jax

    return int(jax.local_devices()[0].memory_stats()["peak_bytes_in_use"])


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
