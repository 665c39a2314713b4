"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcn_jax.errors import WriteError
from fcn_jax.runtime import json_text


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The path of a temporary file beside `path` to write: it takes `path`'s place when the block ends, and goes away when it fails.

    Folders that are missing are made.

    Raises:
        WriteError: the folder cannot be made, or the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors, for one, gives its files to their owner alone
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """The path of a temporary folder beside `path` to fill: it is renamed to `path` when the block ends, and goes away when it fails.

    Folders above it that are missing are made.

    Raises:
        WriteError: there is something at `path` already, or the folder or a file in it cannot be
            written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if path.exists() or path.is_symlink():
            raise WriteError(f"{path} exists; name a folder that is still to be made")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
            yield temporary
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text. Raises as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON, indented; see `fcn_jax.runtime.json_text.dumps`. Raises as `replacing` does."""
    write_text(path, json_text.dumps(value, indent=2) + "\n")
