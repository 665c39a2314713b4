"""Processes that run cases with a time limit. A process that hangs or crashes is replaced."""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fuzz.cases import Case
from fuzz.oracle import Verdict, judge

LIMIT = int(os.environ.get("FUZZ_LIMIT", "180"))
"""Time limit for one case in seconds; the first case of a process imports JAX and PyTorch."""

ADDRESS_SPACE = 16 << 30
"""Limit in bytes. Beyond it, an allocation fails instead of exhausting the machine's memory."""

_ROOT = Path(__file__).resolve().parents[1]


class Worker:
    """A process that runs cases. It starts with the first case."""

    def __init__(self) -> None:
        """Create the folder of the process."""
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        self._process: subprocess.Popen[str] | None = None

    def run(self, case: Case) -> Verdict:
        """Run a case. If the process ends during a case, the next case starts another."""
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(f"{case}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            outcome, detail, seconds = json.loads(answer)
            return Verdict(case, outcome, detail, seconds)
        status = process.wait()
        self._process = None
        log = (Path(self._folder.name) / "log").read_text(errors="replace")
        if "Timeout (" in log:
            return Verdict(case, "hang", f"time limit exceeded: {_deepest(log)}", LIMIT)
        return Verdict(case, "crash", f"the process ended with status {status}: {_deepest(log)}")

    def close(self) -> None:
        """End the process, and delete its folder."""
        if self._process is not None:
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait()
            self._process = None
        self._folder.cleanup()

    def _start(self) -> subprocess.Popen[str]:
        folder = Path(self._folder.name)
        for name in ("home", "tmp", "place"):
            (folder / name).mkdir(exist_ok=True)
        # The second folder has the tests' tiny backbone as an installed plugin.
        path = [
            str(_ROOT),
            str(_ROOT / "tests" / "fixtures" / "tiny"),
            os.environ.get("PYTHONPATH", ""),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "home" / "cache"),
            "TMPDIR": str(folder / "tmp"),
            "FUZZ_PLACE": str(folder / "place"),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": "",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        with (folder / "log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "fuzz.workers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=folder,
            )


def run_all(cases: Iterable[Case], count: int) -> Iterator[Verdict]:
    """Run cases in `count` processes, and yield each verdict when its case ends."""
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    done: queue.SimpleQueue[Verdict | BaseException] = queue.SimpleQueue()
    total = 0
    for case in cases:
        waiting.put(case)
        total += 1

    def work() -> None:
        worker = Worker()
        try:
            while True:
                done.put(worker.run(waiting.get_nowait()))
        except queue.Empty:
            pass
        except BaseException as error:
            done.put(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for _ in range(total):
        verdict = done.get()
        if isinstance(verdict, BaseException):
            raise verdict
        yield verdict
    for thread in threads:
        thread.join()


def run_one_by_one(cases: Iterable[Case], keep: Path | None = None) -> Iterator[Verdict]:
    """Run cases in one process, and keep the files of each case in a folder below `keep`."""
    worker = Worker()
    try:
        if keep is not None:
            os.environ["FUZZ_KEEP"] = str(keep.absolute())
        for case in cases:
            yield worker.run(case)
    finally:
        os.environ.pop("FUZZ_KEEP", None)
        worker.close()


def _deepest(log: str) -> str:
    """Return the innermost calls in a log of faulthandler."""
    frames: Sequence[str] = [
        line.strip() for line in log.splitlines() if line.strip().startswith("File ")
    ]
    return " < ".join(frames[:3]) or log[-300:].strip()


def _serve() -> None:
    """Read cases from standard input, and answer each with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of decoders goes to standard error
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep = os.environ.get("FUZZ_KEEP")
    for line in sys.stdin:
        case = Case.parse(line.strip())
        # This also stops calls into C, which would delay a signal handler.
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        verdict = judge(case, Path(keep) / str(case).replace(":", "-") if keep else None)
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps([verdict.outcome, verdict.detail, verdict.seconds]) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
