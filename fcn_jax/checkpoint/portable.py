"""Portable directories: a model as `config.json`, `model.safetensors` and a model card.

Such a directory can be read without Orbax, and is what model hubs expect. It holds what a
checkpoint of a converted model holds: the spec in `config.json`, and parameters and batch
statistics by dotted name, in the layout of JAX, in `model.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.errors import CheckpointError, WeightsError
from fcn_jax.pytorch import files
from fcn_jax.runtime import atomic

CONFIG = "config.json"
TENSORS = "model.safetensors"
LIBRARY = "fcn_jax"
_HASH = "tensors_sha256"


def is_portable(directory: Path) -> bool:
    """Return whether a directory is a portable one, by its `config.json`."""
    try:
        return config_of(directory).get("library_name") == LIBRARY
    except CheckpointError:
        return False


def config_of(directory: Path) -> dict[str, Any]:
    """The contents of `config.json`, of any library.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a JSON object.
    """
    path = directory / CONFIG
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return table


def write(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write `config.json` and `model.safetensors` to a directory that exists.

    Args:
        directory: where to write.
        config: the spec, as `fcn_jax.checkpoint.Spec.to_dict` returns it, and entries for other
            readers.
        tensors: parameters and batch statistics by dotted name.

    Raises:
        WriteError: a file cannot be written.
    """
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    files.write(directory / TENSORS, arrays, {"format": LIBRARY})
    table = {"library_name": LIBRARY, **config, _HASH: files.sha256(directory / TENSORS)}
    atomic.write_json(directory / CONFIG, table)


def fault(directory: Path) -> str | None:
    """Describe the first fault in the files of a portable directory, or return None."""
    path = directory / TENSORS
    if not path.is_file():
        return f"{TENSORS} is missing"
    expected = config_of(directory).get(_HASH)
    if expected is not None and files.sha256(path) != expected:
        return f"{TENSORS} is not the file that {CONFIG} describes: its SHA-256 differs"
    return None


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """Parameters and batch statistics by dotted name.

    Raises:
        CheckpointError: `model.safetensors` is missing or unreadable.
    """
    try:
        return files.read(directory / TENSORS)
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
