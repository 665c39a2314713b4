"""Checks of the paths that a command will write, made before its work begins.

No command replaces a file that it did not write itself. Each command recognizes its own files by a
mark in their contents.
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
"""Bytes by which the name of a temporary file of `fcn_jax.runtime.atomic` is longer than the final name."""


def check_folder(folder: Path) -> None:
    """Check that files can be written to a folder, which may be missing. Nothing is left behind.

    Raises:
        WriteError: there is a file or a dangling symbolic link of that name, or the folder cannot
            be made or written to.
    """
    _check_link(folder)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise WriteError(
            f"{folder}: cannot be written ({folder} is no folder that can be written to)"
        )
    _check_writable(folder, folder.absolute())


def check_file(path: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Check that a file can be written, and that an existing one is the command's own.

    Args:
        path: the file; folders above it may be missing.
        is_ours: whether an existing file was written by the command that wants to replace it.
        what: what the command writes, such as "a report of fcn-jax verify".

    Raises:
        WriteError: the path cannot be written, or there is somebody else's file.
    """
    _check_link(path)
    if os.path.isdir(path):
        raise WriteError(f"{path}: cannot be written (it is a folder)")
    if os.path.lexists(path) and not is_ours(path):
        raise WriteError(
            f"{path}: exists and is not {what}, so it is not replaced; name another file"
        )
    _check_parent(path)


def check_new(path: Path) -> None:
    """Check that a file or folder can be made at `path`; the caller refuses existing ones.

    Raises:
        WriteError: the path ends in `.`, `..` or `/`, or is a symbolic link, or a folder above it
            cannot be made or written to.
    """
    if os.path.islink(path):
        raise WriteError(
            f"{path}: cannot be written (it is a symbolic link to {os.readlink(path)}; name a new path)"
        )
    if not path.name or path.name == "..":
        raise WriteError(f"{path}: cannot be written (name a new file or folder)")
    _check_parent(path)


def is_too_long(name: str) -> bool:
    """Whether a file of that name cannot be written by way of a temporary file."""
    return len(os.fsencode(name)) + TEMPORARY_BYTES > NAME_BYTES


def _check_parent(path: Path) -> None:
    if is_too_long(path.name):
        raise WriteError(
            f"{path}: cannot be written (its name is longer than {NAME_BYTES - TEMPORARY_BYTES} bytes)"
        )
    _check_writable(path, path.absolute().parent)


def _check_link(path: Path) -> None:
    if os.path.islink(path) and not os.path.exists(path):
        raise WriteError(
            f"{path}: cannot be written (it is a symbolic link to {os.readlink(path)}, which does not exist)"
        )


def _check_writable(path: Path, folder: Path) -> None:
    """Check that files can be made in `folder`, or else in the nearest existing folder above it."""
    if any(len(os.fsencode(part)) > NAME_BYTES for part in path.parts):
        raise WriteError(
            f"{path}: cannot be written (a name in it is longer than {NAME_BYTES} bytes)"
        )
    # By os.path: for it, a folder that may not be entered holds nothing, where Path raises.
    nearest = next(above for above in (folder, *folder.parents) if os.path.lexists(above))
    if not (os.path.isdir(nearest) and os.access(nearest, os.W_OK)):
        raise WriteError(
            f"{path}: cannot be written ({nearest} is no folder that can be written to)"
        )
    try:
        with tempfile.TemporaryFile(
            dir=nearest
        ):  # shows what permissions do not: a file system that is full or read-only
            pass
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({nearest}: {error.strerror or error})"
        ) from error
