"""A contender in its own process, which shares neither threads nor memory with others."""

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
    """A process for each contender, by name, prepared one after the other and always ended.

    Args:
        task: what they do.
        setting: on what.
        contenders: who.
        cache: folder in which each keeps its compiled programs, apart from the others'; else where
            the environment says.
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
    """Runs one contender's task when told to.

    Attributes:
        answer: what the first run came to.
        first_seconds: how long it took, compilation included.
        first_bytes: the most memory that the process held until then, on CPUs beyond what it held
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
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, contender, task, setting, cache), daemon=False
        )
        self._process.start()
        theirs.close()

    def wait_for_imports(self) -> None:
        """Wait until the process has loaded its libraries. Raises as `prepare` does."""
        self._answer()

    def prepare(self) -> None:
        """Prepare the task and run it once. Raises `RuntimeError` if the process fails."""
        self.answer, self.first_seconds, self.first_bytes = self._ask("first")

    def __call__(self) -> None:
        """Run the task `tasks.in_a_row` times and wait."""
        self._ask("call")

    def close(self) -> int:
        """Have the process end; the most memory it held after the first run, in bytes.

        On a GPU that is the GPU's, the first run included; on CPUs the process's, beyond what it
        held before the task was prepared.
        """
        return int(self._ask("close"))

    def wait(self) -> None:
        """Until the process, told to end, has ended; half a minute at most."""
        self._process.join(30)

    def kill(self) -> None:
        """End the process, whatever it does, if it has not ended."""
        self._process.kill()
        self._process.join()

    def _ask(self, what: str) -> Any:
        self._pipe.send(what)
        return self._answer()

    def _answer(self) -> Any:
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
        process.configure_process(
            trains=task not in INFERENCE
        )  # as the library's commands do; every contender gains by it
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
                trim_malloc()  # as the training loop does after its first step
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
    import jax  # it is there already, and so asks its environment no more

    jax.config.update("jax_compilation_cache_dir", str(folder))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _import(contender: Contender) -> None:
    """Load the libraries, whose size is not the task's."""
    import benchmarks.jax_tasks

    if contender.framework == "torch":
        import benchmarks.torch_tasks  # noqa: F401


def _start_peak() -> int:
    """Forget what was held at most so far, where the system can; what is held now, in bytes."""
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
