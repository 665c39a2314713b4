"""Files and folders that appear complete or not at all."""

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
def write_errors(path: str | Path, problem: str = "cannot be written") -> Iterator[None]:
    """Context manager that turns an `OSError` of its block into a `WriteError` about `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path}: {problem} ({error.strerror or error})") from error


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Context manager that replaces a file at the end of the block.

    It yields the path of a temporary file in the same folder, which then replaces `path`. If the
    block fails, the temporary file is removed. Missing folders are made.

    Raises:
        WriteError: the folder cannot be made, or the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors makes files that only their owner can read
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Context manager that makes a folder at the end of the block.

    It yields the path of a temporary folder in the same parent, which is then renamed to `path`. If
    the block fails, the temporary folder is removed. Missing parents are made.

    Raises:
        WriteError: `path` exists, or the folder or a file in it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with write_errors(path):
        if path.exists() or path.is_symlink():
            raise WriteError(f"{path} exists; name a new folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
            yield temporary
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text. Raises as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with `json_text.dumps`. Raises as `replacing` does."""
    write_text(path, json_text.dumps(value, indent=2) + "\n")
