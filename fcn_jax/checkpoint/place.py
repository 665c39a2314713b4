"""Folders of checkpoints: on local disks, and in Google Cloud Storage (gs://bucket/run).

An object store has no folders to rename: Orbax writes a checkpoint under its final name, and
`commit_success.txt` last.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import fsspec
from etils import epath

from fcn_jax.errors import ConfigError
from fcn_jax.runtime import atomic, json_text

COMMIT = "commit_success.txt"
"""The file that Orbax writes last."""

_GCS = re.compile(r"gs:/+")  # pathlib drops the second slash
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://?", re.IGNORECASE)


def is_remote(path: str | Path) -> bool:
    """Return whether a path is in an object store."""
    return _GCS.match(os.fspath(path)) is not None


def place(path: str | Path) -> Path:
    """Return a folder that may be in an object store; its path has the methods of `Path`.

    Raises:
        ConfigError: it is in a store of another kind, or the package for the store is missing.
    """
    text = os.fspath(path)
    found = _GCS.match(text)
    if found is None:
        if "://" in text and _SCHEME.match(text):
            raise ConfigError(
                f"{text}: expected a local folder or gs://BUCKET/FOLDER; mount stores of other "
                "kinds as a local folder"
            )
        return Path(text)
    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError:
        raise ConfigError(f"{text}: needs a package: pip install gcsfs") from None
    return cast(Path, epath.Path(f"gs://{text[found.end() :]}"))


def absolute(path: Path) -> Path:
    """Return the absolute path of a place."""
    return path if is_remote(path) else path.absolute()


def is_complete(directory: Path) -> bool:
    """Return whether a checkpoint under its final name is complete. On local disks, all are."""
    return not is_remote(directory) or (directory / COMMIT).exists()


def files_below(directory: Path) -> Iterator[tuple[str, Path, int]]:
    """Yield the relative name, path and size of all files below a folder, sorted."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            for name, inner, size in files_below(path):
                yield f"{path.name}/{name}", inner, size
        else:
            yield path.name, path, size_of(path)


def size_of(path: Path) -> int:
    """Return the size of a file in bytes."""
    stat: Any = path.stat()
    return int(stat.length if is_remote(path) else stat.st_size)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, completely or not at all.

    Raises:
        WriteError: it cannot be written.
    """
    if not is_remote(path):
        atomic.write_json(path, value)
        return
    with atomic.write_errors(path):
        path.write_text(json_text.dumps(value, indent=2) + "\n")


def remove(directory: Path) -> None:
    """Remove a folder with its contents, as far as possible."""
    if is_remote(directory):
        with contextlib.suppress(Exception):  # gcsfs has errors of its own
            # First, so that a process killed here leaves no checkpoint that looks complete.
            (directory / COMMIT).unlink(missing_ok=True)
            cast(Any, directory).rmtree(missing_ok=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)


def copy(source: Path, target: Path) -> None:
    """Copy a file between places. The copy is there completely or not at all.

    Raises:
        FileNotFoundError: there is no such file to copy.
        WriteError: the copy cannot be written.
    """
    contents = source.read_bytes()
    if is_remote(target):
        with atomic.write_errors(target):
            target.write_bytes(contents)
        return
    with atomic.replacing(target) as temporary:
        temporary.write_bytes(contents)
