"""Plugins imported in processes of their own, which they may end, hold up or fill with whatever they like."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from fcn_jax.plugins.registry import Entry

_CHECK = """
import json, sys
from fcn_jax.errors import PluginError
from fcn_jax.plugins.registry import Entry, load

def fault(fields):
    try:
        load(Entry(*fields))
    except PluginError as error:
        return str(error)

answer, entries = sys.argv[1:]
reasons = [fault(fields) for fields in json.loads(entries)]
with open(answer, "w", encoding="utf-8") as file:
    json.dump({"reasons": reasons}, file)
"""


def check(entry: Entry, timeout: float = 60.0) -> str | None:
    """Load one plugin in a process of its own.

    Args:
        entry: from `Registry.entries`.
        timeout: seconds after which the process is killed, with whatever it has started; above 0.

    Returns:
        None if the plugin loads, otherwise the reason why it does not.
    """
    return check_all([entry], timeout)[entry]


def check_all(entries: Iterable[Entry], timeout: float = 60.0) -> dict[Entry, str | None]:
    """`check` for each entry, in the order given.

    What one distribution registers from one module shares a process, and its fate where that hangs;
    where the process ends before it has answered, each has one of its own. As many run at once as
    there are processors.
    """
    entries = list(entries)
    modules: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        modules.setdefault(
            (entry.distribution, entry.version, entry.value.partition(":")[0]), []
        ).append(entry)
    # The lifeline ends first: after an interrupt the pool waits for no child, since that ends them
    # all.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool, lifeline() as held:
        try:
            faults = list(
                pool.map(
                    lambda together: _check_together(together, timeout, held), modules.values()
                )
            )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    found = dict(zip(itertools.chain(*modules.values()), itertools.chain(*faults), strict=True))
    return {entry: found[entry] for entry in entries}


def _check_together(entries: Sequence[Entry], timeout: float, held: IO[bytes]) -> list[str | None]:
    answer, fault = ask_child(
        _CHECK, [json.dumps([dataclasses.astuple(entry) for entry in entries])], timeout, held
    )
    if answer is not None:
        return cast("list[str | None]", answer["reasons"])
    if len(entries) == 1 or fault == _timed_out(timeout):
        return [fault] * len(entries)
    return [_check_together([entry], timeout, held)[0] for entry in entries]


@contextlib.contextmanager
def lifeline() -> Iterator[IO[bytes]]:
    """What the children of `ask_child` hold on to: when the context is left, and when this process ends, however it does, they end."""
    reading, writing = os.pipe()
    with open(reading, "rb") as held, open(writing, "wb"):
        yield held


# What a child does before and after: it ends with its parent, and when it has answered, whatever
# threads and exit handlers are left.
_BEFORE = """
import os, signal, threading

def end_with_parent(held=os.dup(0)):
    os.read(held, 1)
    os.killpg(0, signal.SIGKILL) if hasattr(os, "killpg") else os._exit(1)

os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
threading.Thread(target=end_with_parent, daemon=True).start()
"""
_AFTER = "\nos._exit(0)\n"


def ask_child(
    code: str, arguments: Iterable[str], timeout: float, held: IO[bytes]
) -> tuple[dict[str, Any] | None, str]:
    """Run code that imports a plugin in a process of its own, with this process's import path.

    Args:
        code: Python that writes a JSON object to the file `sys.argv[1]`. What it prints is not
            looked at: a plugin may print anything.
        arguments: `sys.argv[2:]`.
        timeout: seconds after which the process is killed, with whatever it has started.
        held: from `lifeline`.

    Returns:
        The object and "", or None and the reason why there is none.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as complaints:
        answer = Path(folder) / "answer.json"
        with subprocess.Popen(
            # -P: the current folder is on the child's import path only if it is on this process's,
            # where it may be called "".
            [sys.executable, "-P", "-c", _BEFORE + code + _AFTER, str(answer), *arguments],
            stdin=held,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            },
            start_new_session=True,
        ) as child:
            try:
                child.wait(timeout)
            except subprocess.TimeoutExpired:
                return None, _timed_out(timeout)
            finally:
                _kill(child)
        try:
            return json.loads(answer.read_text(encoding="utf-8")), ""
        except (OSError, ValueError):
            complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 2000))
            last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
        ended = (
            f"by {signal.Signals(-child.returncode).name}"
            if child.returncode < 0
            else f"with status {child.returncode}"
        )
        return None, f"the import ended the process {ended}" + (f": {last[0]}" if last else "")


def _timed_out(timeout: float) -> str:
    return f"timed out after {timeout:g} s at import"


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a process and, where the system knows process groups, all that it has started."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it ended by itself, and left nothing behind
            return
    else:
        child.kill()
