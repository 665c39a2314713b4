"""Folders that are made once in the cache, complete or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fcn_jax.errors import WriteError
from fcn_jax.runtime import atomic, cache


def prepared(name: str, sources: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills from files, which it does only if they have changed.

    `make` writes into a temporary folder, which is renamed at the end: an interruption leaves no
    folder, and if two processes prepare at the same time, the first result is kept.

    Args:
        name: the beginning of the folder's name.
        sources: the files; their paths, sizes and times of modification identify the folder.
        make: function that fills the folder that it receives.

    Raises:
        WriteError: the folder cannot be written, for example because the disk is full.
    """
    states = [(path.resolve(), os.stat(path)) for path in sources]
    identity = "\0".join(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}" for path, stat in states)
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=8)
    folder = cache.folder() / "datasets" / f"{name}-{digest.hexdigest()}"
    if not folder.is_dir():
        try:
            with atomic.new_folder(folder) as temporary:
                make(temporary)
        except WriteError as error:
            if not folder.is_dir():  # otherwise another process was quicker
                raise WriteError(
                    f"{error}; nothing was kept. Free space there, or set {cache.VARIABLE} to "
                    "another folder"
                ) from error
    return folder
