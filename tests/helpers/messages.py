"""Records of the error messages that the tests cause, and their comparison.

`FCN_JAX_MESSAGES=FILE make test` appends all error messages and the names of their tests to FILE.
`python -m tests.helpers.messages BEFORE AFTER` prints the messages that are in only one of two such
files, sorted by text.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import traceback
from collections.abc import Iterable
from pathlib import Path

import pytest


class Recorder:
    """A pytest plugin that writes each `FcnJaxError` to a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._test = ""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        from fcn_jax.errors import FcnJaxError

        original = FcnJaxError.__init__

        @functools.wraps(original)
        def init(error: FcnJaxError, *args: object) -> None:
            original(error, *args)
            self._write(error)

        FcnJaxError.__init__ = init  # type: ignore[method-assign]

    def _write(self, error: Exception) -> None:
        caller = traceback.extract_stack(limit=3)[0]
        record = {
            "test": self._test,
            "error": type(error).__name__,
            "message": str(error),
            "source": Path(caller.filename).name,
        }
        # A whole line is written at once, because several workers append to the file.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def template(message: str) -> str:
    """Remove the parts of a message that differ between runs: temporary paths and numbers."""
    message = re.sub(r"(/[\w.\-+~]+)+/(?=[\w.\-])", "", message)
    return re.sub(r"\d+", "#", message)


def read(path: Path) -> dict[str, dict[str, str]]:
    """Read the records of a file by template. A record is an object or [test, error, message]."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if isinstance(record, list):
            record = dict(zip(("test", "error", "message"), record, strict=True))
        found[template(record["message"])] = record
    return found


def compare(before: Path, after: Path) -> Iterable[str]:
    """Yield the lines of a report: removed messages with `-`, new ones with `+`, and counts."""
    old, new = read(before), read(after)
    removed, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    for sign, keys, records in (("-", removed, old), ("+", added, new)):
        for key in keys:
            yield f"{sign} {records[key]['error']}: {records[key]['message']}"
            yield f"      {records[key]['test']}"
    yield f"{len(old)} before, {len(new)} after; {len(removed)} removed, {len(added)} new"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare the error messages of two test runs.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    print("\n".join(compare(arguments.before, arguments.after)))
