"""Plugins imported in processes of their own, so that a plugin that hangs or exits does no harm."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fcn_jax.plugins.entry import Entry

_CHILD = """
import json, os, signal, sys
from fcn_jax.errors import PluginError
from fcn_jax.plugins.entry import Entry, import_descriptor

signal.alarm(int(sys.argv[3]))  # if the parent was killed and cannot end this process
entries = [Entry(*fields) for fields in json.loads(sys.argv[2])]

def fault(entry):
    try:
        import_descriptor(entry)
    except PluginError as error:
        return str(error)

def answer(value):
    with open(sys.argv[1], "a", encoding="utf-8") as file:
        print(json.dumps(value), file=file)

%s
os._exit(0)  # whatever threads and exit handlers the plugin leaves
"""


def check_all(entries: Iterable[Entry], timeout: float = 60.0) -> dict[Entry, str | None]:
    """Import every plugin, in one process for each distribution as long as none hangs or exits.

    Args:
        entries: from `Registry.entries`.
        timeout: seconds after which a process is killed, with all that it has started; above 0.

    Returns:
        By entry, in the given order: None if it can be imported, otherwise the reason.
    """
    entries = list(entries)
    found: dict[Entry, str | None] = {}
    by_distribution = sorted(entries, key=lambda entry: (entry.distribution, entry.value))
    for _, group in itertools.groupby(by_distribution, lambda entry: entry.distribution):
        rest = list(group)
        while rest:
            code = "for entry in entries: answer(fault(entry))"
            answers, ending = run_isolated(code, rest, timeout)
            found |= zip(rest, answers, strict=False)
            rest = rest[len(answers) :]
            if rest and ending.startswith("timed out"):  # so would all others of its module
                same = [entry for entry in rest if entry.module == rest[0].module]
            else:
                same = rest[:1]
            found |= dict.fromkeys(same, ending)
            rest = rest[len(same) :]
    return {entry: found[entry] for entry in entries}


def run_isolated(code: str, entries: Iterable[Entry], timeout: float) -> tuple[list[Any], str]:
    """Run code about plugins in a process of its own, with this process's import path.

    Args:
        code: Python that may call `fault(entry)`, which imports a plugin, for each of `entries`,
            and `answer(value)` with JSON-able values. Printed text is ignored.
        entries: the plugins.
        timeout: seconds after which the process is killed, with all that it has started.

    Returns:
        The answers, and how the process ended, which is the reason if answers are missing.
    """
    fields = json.dumps([dataclasses.astuple(entry) for entry in entries])
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    with tempfile.TemporaryDirectory() as folder:
        answers, errors = Path(folder, "answers"), Path(folder, "errors")
        answers.touch()
        # -P: the current folder is on the child's import path only if it is on this one's.
        command = [sys.executable, "-P", "-c", _CHILD % code, str(answers), fields]
        with (
            errors.open("wb") as stderr,
            subprocess.Popen(
                [*command, str(int(timeout) + 2)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            ) as child,
        ):
            try:
                status = child.wait(timeout)
                how = (
                    f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
                )
                last = errors.read_text(errors="replace").strip().splitlines()[-1:]
                ending = ": ".join([f"the import ended the process {how}", *last])
            except subprocess.TimeoutExpired:
                ending = f"timed out after {timeout:g} s at import"
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
        return [
            json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()
        ], ending
