"""Run one case in its own folder, and judge it.

Every case must meet these conditions:

* It returns a result or raises an `FcnJaxError`. The message of the error is one line, is not
  empty, has no words of Python's own errors, and names the file or setting.
* Only permitted files are created, changed or deleted. An error leaves none of them.
* Memory is bounded. (`workers` limits the time.)
* The result is correct, if the mutation knows the correct one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcn_jax.errors import FcnJaxError
from fuzz.cases import Case, Trial, UndetectableError, WrongError, mutations

MEMORY = 2 << 30
"""Bytes by which a case may raise the peak memory of the process."""

LONGEST = 4000
"""Maximum number of characters of an error."""

_PYTHONS_WORDS = re.compile(
    r"Traceback|<bound method|object at 0x|<class '|<function |<built-in"
    r"|object is not (subscriptable|iterable|callable)|has no attribute|unexpected keyword"
    r"|__init__\(\)|index out of range|codec can't decode|positional argument"
    r"|not supported between instances|errors\.pydantic|unhashable type|values to unpack"
    r"|cannot reshape"
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of a case.

    Attributes:
        case: the case.
        outcome: "right", "refused", "undetectable", or for a fault "traceback", "wrong", "refused
            valid input", "accepted invalid input", "message", "write", "memory", "hang" or "crash";
            "broken case" if the mutation itself failed.
        detail: the error's message, the reason, or the problem.
        seconds: the time that the case took.
    """

    case: Case
    outcome: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def fault(self) -> bool:
        """Whether the outcome is a fault of fcn_jax or of the mutation."""
        return self.outcome not in ("right", "refused", "undetectable")

    def __str__(self) -> str:
        return f"{self.case}  {self.outcome}: {self.detail}"


def judge(case: Case, keep: Path | None = None) -> Verdict:
    """Run a case and judge its outcome.

    Args:
        case: the case.
        keep: folder for the files of the case; by default they are deleted.
    """
    make = mutations(case.family)[case.mutation][0]
    place = keep or Path(tempfile.mkdtemp(prefix="case-", dir=os.environ.get("FUZZ_PLACE")))
    place.mkdir(parents=True, exist_ok=True)
    back = Path.cwd()
    began = time.perf_counter()
    try:
        os.chdir(place)
        try:
            trial = make(case.rng(), place)
        except Exception:
            outcome, detail = "broken case", " / ".join(traceback.format_exc(limit=-3).split("\n"))
        else:
            outcome, detail = _run(trial, place)
    finally:
        os.chdir(back)
        if keep is None:
            shutil.rmtree(place, ignore_errors=True)
    return Verdict(case, outcome, detail.replace(str(place), "PLACE"), time.perf_counter() - began)


def _run(trial: Trial, place: Path) -> tuple[str, str]:
    before, result, error = _snapshot(place), None, None
    peak = _peak(reset=True)
    with _writes() as written:
        try:
            result = trial.call()
        except FcnJaxError as caught:
            error = caught
        except (KeyboardInterrupt, SystemExit):
            raise
        except WrongError as caught:
            return "wrong", str(caught)
        except BaseException as caught:
            return "traceback", _where(caught)
    grown = _peak() - peak
    if grown > MEMORY:
        return "memory", f"{grown / 2**30:.1f} GiB more than before"
    if fault := _wrong_writes(trial, place, before, written, failed=error is not None):
        return "write", fault
    if error is not None:
        message = str(error)
        if fault := _wrong_message(message, trial.names):
            return "message", f"{fault}: {message[:400]}"
        return (
            ("refused", message)
            if trial.refusable or trial.right is None
            else ("refused valid input", message)
        )
    if trial.right is None:
        return "accepted invalid input", repr(result)[:200]
    try:
        wrong = trial.right(result)
    except UndetectableError as reason:
        return "undetectable", str(reason)
    except Exception:
        return "broken case", " / ".join(traceback.format_exc(limit=-3).split("\n"))
    return ("wrong", wrong) if wrong else ("right", "")


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "fcn_jax" in frame.filename] or frames
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at {place}: {' '.join(str(error)[:2000].split())[-300:]}"


def _wrong_message(message: str, names: Any) -> str:
    if not message.strip():
        return "an empty message"
    if "\n" in message or "\r" in message:
        return "more than one line"
    # Repeated characters of the input do not count.
    if len(re.sub(r"(.{1,3}?)\1{50,}", r"\1", message)) > LONGEST:
        return f"{len(message)} characters"
    if found := _PYTHONS_WORDS.search(message):
        return f"the message has Python's own words '{found[0]}'"
    if names and not any(name in message for name in names):
        return f"the message names none of {', '.join(names)}"
    return ""


def _snapshot(place: Path) -> dict[str, str]:
    """Return every path below a folder with a hash of its contents."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "special"
    return found


def _wrong_writes(
    trial: Trial, place: Path, before: dict[str, str], written: set[str], *, failed: bool
) -> str:
    outputs = [Path(os.path.realpath(place / output)) for output in trial.outputs]
    after = _snapshot(place)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        path = place / name
        change = "deleted" if name not in after else "changed" if name in before else "created"
        real = Path(os.path.realpath(path))
        if not any(real == output or output in real.parents for output in outputs):
            # A parent folder of an output may be created.
            if not (
                change == "created"
                and after[name] == "folder"
                and any(real in output.parents for output in outputs)
            ):
                return f"{name} is {change}"
        elif failed and not trial.partial:
            return f"{name} is {change} although the call failed"
    allowed = tuple(
        os.path.realpath(folder)
        for folder in (place, tempfile.gettempdir(), os.environ["HOME"], "/dev")
    )
    if outside := sorted(
        path for path in written if not os.path.realpath(path).startswith(allowed)
    ):
        return f"{outside[0]} is written outside of the case's folder"
    return ""


_watched: set[str] | None = None
_hooked = False


@contextlib.contextmanager
def _writes() -> Iterator[set[str]]:
    """Collect the paths that Python opens for writing, creates, renames or deletes."""
    global _watched, _hooked
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    _watched = set()
    try:
        yield _watched
    finally:
        _watched = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event == "open":
        path, _, flags = args
        if isinstance(path, str | bytes) and flags & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        ):
            _watched.add(os.path.abspath(os.fsdecode(path)))
    elif event in (
        "os.mkdir",
        "os.remove",
        "os.rmdir",
        "os.truncate",
        "os.rename",
        "os.link",
        "os.symlink",
        "shutil.rmtree",
    ):
        for path in args[:2]:
            if isinstance(path, str | bytes) and path:
                _watched.add(os.path.abspath(os.fsdecode(path)))


def _peak(*, reset: bool = False) -> int:
    """Return the peak memory in bytes since the last reset; 0 if the system does not report it."""
    with contextlib.suppress(OSError):
        if reset:
            gc.collect(0)
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0
