"""The run directory: written by one process at a time, and removed if the run took no step."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Set
from pathlib import Path
from types import TracebackType

from fcn_jax.checkpoint import place
from fcn_jax.errors import ConfigError, WriteError
from fcn_jax.runtime import atomic, distributed
from fcn_jax.runtime.atomic import write_errors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WRITTEN = frozenset(
    {
        "config.json",
        "versions.json",
        "parameters.json",
        "metrics.jsonl",
        "checkpoints",
        "samples",
        "nonfinite",
        "evaluations",
        "tensorboard",
        "wandb",
        "wandb.json",
    }
)
_HOLDER = "process.json"
"""Names the process that holds the lock, for the message of a second one."""

_LEFTOVER = re.compile(r"\.(config|versions|parameters|metrics|wandb|process)\.[0-9a-f]{8}\.jsonl?")
"""Temporary files of `fcn_jax.runtime.atomic` that a killed process left."""
_INNER_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")
"""The same, of the folders that only this package writes to."""
_INNER = ("samples", "evaluations", "nonfinite")
_ANOTHER = "name another directory with --workdir"


def is_leftover(path: Path) -> bool:
    """Return whether a file of a run directory was left by a killed process."""
    return bool(_LEFTOVER.fullmatch(path.name) or path.name == _HOLDER) and path.is_file()


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there and that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


class RunDirectory:
    """Context manager that holds the lock of a run directory.

    Of several processes of one job, only the first one writes and locks.

    The lock is on the directory itself (`flock`), so it needs no file, and the system releases it
    whenever the process ends. If the file system has no locks, the run continues without. The file
    `process.json` names the process only for messages: a killed process leaves it behind.

    Attributes:
        keep: keep the files. Otherwise, all files that this process made there are removed at the
            end.
    """

    keep = False

    def __init__(self, path: Path) -> None:
        """Store the path; nothing is made yet."""
        self._path = path
        self._lock: int | None = None
        self._made: list[Path] = []
        self._before: Set[str] = _WRITTEN
        self._named = False
        self._first = distributed.is_first()

    def __enter__(self) -> RunDirectory:
        """Check that a run can be written there, and lock the directory if it exists.

        Raises:
            ConfigError: the path is not a directory, or another process trains there.
            WriteError: it cannot be written.
        """
        path = self._path
        above = path
        if not self._first:
            return self
        if "\0" in str(path):
            raise ConfigError(f"{str(path)!r}: a path cannot contain a zero byte; {_ANOTHER}")
        if place.is_remote(path):
            raise ConfigError(
                f"{path}: a run directory is local; name one with --workdir, and put its "
                "checkpoints in the store with --set train.checkpoint_dir=gs://BUCKET/FOLDER"
            )
        with write_errors(path, "cannot be used as a run directory"):
            while not above.exists():
                if above.is_symlink():
                    raise ConfigError(
                        f"{path}: {above} is a dangling symbolic link; remove it, or {_ANOTHER}"
                    )
                above = above.parent
            if not above.is_dir():
                what = (
                    "a run is a directory; this is a file"
                    if above == path
                    else f"{above} is a file, not a directory"
                )
                raise ConfigError(f"{path}: {what}; {_ANOTHER}")
        if not os.access(above, os.W_OK | os.X_OK):
            raise WriteError(
                f"{path}: cannot be written (no permission to write in {above}); {_ANOTHER}"
            )
        if above == path:
            self._take_lock()
        return self

    def open(self, check: Callable[[], None]) -> None:
        """Make the directory and lock it.

        Args:
            check: called under the lock, when no other process can write there any more.

        Raises:
            ConfigError: another process trains there, or the first process of the job has made the
                directory elsewhere.
            WriteError: it cannot be made.
        """
        if self._first:
            self._make(check)
        distributed.wait_for_all()
        if not self._path.is_dir():
            raise ConfigError(
                f"{self._path}: process 0 has made this directory, and process "
                f"{distributed.index()} does not see it; name one on a file system that all "
                "processes share with --workdir"
            )

    def _make(self, check: Callable[[], None]) -> None:
        with write_errors(self._path, "cannot be made"):
            folders = (self._path, *self._path.parents)
            missing = [folder for folder in folders if not folder.exists()]
            self._path.mkdir(parents=True, exist_ok=True)
        self._made = missing
        if self._lock is None:
            self._take_lock()
        check()
        self._before = {entry.name for entry in self._path.iterdir()}
        self._remove_leftovers()
        self._name_holder()

    def _remove_leftovers(self) -> None:
        for entry in self._path.iterdir():
            if is_leftover(entry):
                entry.unlink(missing_ok=True)
        for name in _INNER:
            for path in list((self._path / name).rglob(".*")):
                if _INNER_LEFTOVER.fullmatch(path.name):
                    _remove(path)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the files of this process, unless `keep`, and release the lock."""
        if self._named:
            with contextlib.suppress(OSError):
                (self._path / _HOLDER).unlink()
        if not self.keep and self._first:
            self._remove()
        if self._lock is not None:
            os.close(self._lock)

    def _remove(self) -> None:
        # The recipe comes last: as long as there is a file, the directory holds a run.
        for name in sorted(_WRITTEN - self._before, key="config.json".__eq__):
            _remove(self._path / name)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        try:
            lock = os.open(self._path, os.O_RDONLY)
        except OSError:
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ConfigError(
                f"{self._path}: another process{self._holder()} trains in this directory; "
                f"wait for it, or {_ANOTHER}"
            ) from None
        except OSError:  # a file system without locks, such as NFS
            os.close(lock)
        else:
            self._lock = lock
            if (self._path / _HOLDER).exists():  # of a process that was killed
                self._name_holder()

    def _name_holder(self) -> None:
        self._named = True
        with contextlib.suppress(WriteError):  # it is not worth an error
            atomic.write_json(
                self._path / _HOLDER, {"pid": os.getpid(), "host": socket.gethostname()}
            )

    def _holder(self) -> str:
        """The process that holds the lock, for a message; empty if it is not known."""
        try:
            holder = json.loads((self._path / _HOLDER).read_text(encoding="utf-8"))
            return f" (pid {holder['pid']} on host {holder['host']})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""
