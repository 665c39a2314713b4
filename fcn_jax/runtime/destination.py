"""Checks of output paths, made before a command does its work.

No command replaces a file that it did not write. Each command recognizes its own files by a mark in
their contents.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from fcn_jax.errors import WriteError

NAME_BYTES = 255
"""Longest file name that common file systems allow."""

TEMPORARY_BYTES = 10
"""Length by which `fcn_jax.runtime.atomic` extends a name for its temporary file, in bytes."""


def check_folder(folder: Path) -> None:
    """Check that files can be written to a folder, which may be missing. Nothing is left there.

    Raises:
        WriteError: the path is a file or a dangling symbolic link, or the folder cannot be made or
            written to.
    """
    _check_link(folder)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise _unwritable(folder, f"{folder} is not a writable folder")
    _check_writable(folder, folder.absolute())


def check_file(path: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Check that a file can be written, and that an existing one is the command's own.

    Args:
        path: the file; its parent folders may be missing.
        is_ours: function that recognizes a file that this command wrote.
        what: the kind of file, such as "a report of fcn-jax verify".

    Raises:
        WriteError: the path cannot be written, or holds another file.
    """
    _check_link(path)
    if os.path.isdir(path):
        raise _unwritable(path, "it is a folder")
    if os.path.lexists(path) and not is_ours(path):
        raise WriteError(
            f"{path}: exists and is not {what}, so it is not replaced; name another file"
        )
    _check_parent(path)


def check_new(path: Path) -> None:
    """Check that a file or folder can be made at `path`. The caller rejects existing ones.

    Raises:
        WriteError: the path ends in `.`, `..` or `/`, or is a symbolic link, or its parent folder
            cannot be made or written to.
    """
    if os.path.islink(path):
        raise _unwritable(path, f"it is a symbolic link to {os.readlink(path)}; name a new path")
    if not path.name or path.name == "..":
        raise _unwritable(path, "name a new file or folder")
    _check_parent(path)


def is_too_long(name: str) -> bool:
    """Return whether a name is too long for a file that is written through a temporary file."""
    return len(os.fsencode(name)) + TEMPORARY_BYTES > NAME_BYTES


def _check_parent(path: Path) -> None:
    if is_too_long(path.name):
        longest = NAME_BYTES - TEMPORARY_BYTES
        raise _unwritable(path, f"its name is longer than {longest} bytes")
    _check_writable(path, path.absolute().parent)


def _check_link(path: Path) -> None:
    if os.path.islink(path) and not os.path.exists(path):
        link = os.readlink(path)
        raise _unwritable(path, f"it is a symbolic link to {link}, which does not exist")


def _check_writable(path: Path, folder: Path) -> None:
    """Check that files can be made in `folder` or, if missing, its nearest existing parent."""
    if any(len(os.fsencode(part)) > NAME_BYTES for part in path.parts):
        raise _unwritable(path, f"a name in it is longer than {NAME_BYTES} bytes")
    # os.path, because Path raises for a folder that may not be entered.
    nearest = next(above for above in (folder, *folder.parents) if os.path.lexists(above))
    if not (os.path.isdir(nearest) and os.access(nearest, os.W_OK)):
        raise _unwritable(path, f"{nearest} is not a writable folder")
    try:
        # Unlike permissions, this also detects a file system that is full or read-only.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise _unwritable(path, f"{nearest}: {error.strerror or error}") from error


def _unwritable(path: Path, reason: str) -> WriteError:
    return WriteError(f"{path}: cannot be written ({reason})")
