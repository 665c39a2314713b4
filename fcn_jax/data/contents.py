"""Encoded images and masks: files, or their contents in memory."""

from __future__ import annotations

from pathlib import Path

from fcn_jax.errors import DamagedError, DataError


def name_of(source: Path | bytes, in_memory: str = "") -> str:
    """The name of an image or mask in messages: its path, or `in_memory` if it is not a file."""
    if isinstance(source, Path):
        return str(source)
    return in_memory or f"{len(source)} bytes in memory"


def read_bytes(source: Path | bytes, name: str) -> bytes:
    """The contents of an image or mask, at least one byte.

    Args:
        source: a file, or its contents.
        name: its name in an error.

    Raises:
        DamagedError: the file is empty.
        DataError: the file is missing or unreadable.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{name}: the file does not exist (or is a link that leads nowhere); check the path"
        ) from error
    except OSError as error:
        raise DataError(
            f"{name}: cannot read the file ({error.strerror}); check the path and its permissions"
        ) from error
    if not data:
        raise DamagedError(f"{name}: the file is empty; copy or download it again")
    return data
