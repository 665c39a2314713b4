"""The files of checkpoints: complete ones, damaged ones, and their scores, without Orbax."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcn_jax.errors import listing
from fcn_jax.runtime import atomic

METRIC = "miou"

STEPS = "checkpoints"
"""The folder of a run's checkpoints."""

RUN_ITEMS = ("model", "train", "data", "spec")
"""The items of a run's checkpoints."""

EMA = "ema"
"""The item with averages of the weights, which is optional."""

FILES = "files.json"
SCORE = "score.json"

EVIDENCE = "verify.json"
"""The report of `fcn-jax verify` on a converted model."""

_NOT_LISTED = frozenset({FILES, SCORE, "commit_success.txt", "_CHECKPOINT_METADATA"})
"""Files that are written after the list, or that do not describe the contents."""


def steps(folder: Path) -> list[int]:
    """The steps of complete checkpoints, ascending. A complete one is named by its step."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if path.name.isascii() and path.name.isdecimal() and path.is_dir()
    )


def rank(directory: Path) -> float:
    """Return a checkpoint's mIoU, or -1 if it was not evaluated or no pixel was counted."""
    value = (evaluation(directory) or {METRIC: None})[METRIC]
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else -1.0


def ranked(folder: Path) -> list[Path]:
    """The complete checkpoints of a folder, the best first; those without a score by their step."""
    directories = [folder / str(step) for step in reversed(steps(folder))]
    return sorted(directories, key=rank, reverse=True)


def evaluation(directory: Path) -> Mapping[str, Any] | None:
    """The scores of a checkpoint, or None if it was not evaluated."""
    try:
        table = json.loads((directory / SCORE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) and METRIC in table else None


def list_files(directory: Path) -> None:
    """Write the list of a checkpoint's files: a mapping of name to [bytes, CRC-32]."""
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in _NOT_LISTED:
            files[path.relative_to(directory).as_posix()] = [path.stat().st_size, _checksum(path)]
    atomic.write_json(directory / FILES, files)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def fault(directory: Path, items: Sequence[str] = ("model", "spec")) -> str | None:
    """Describe the first fault in the files of a checkpoint's items, or return None.

    Format 1 has no list of files. `read_spec` rejects it with a clear error.
    """
    missing = [item for item in items if not (directory / item).is_dir()]
    if missing:
        return f"{listing(missing)} is missing"
    try:
        files = json.loads((directory / FILES).read_text(encoding="utf-8"))
        listed = {name.split("/")[0] for name in files}
        if unlisted := [item for item in items if item not in listed]:
            return f"{FILES} does not list {listing(unlisted)}"
        for name, (size, checksum) in files.items():
            if name.split("/")[0] not in (*items, EMA):
                continue
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _checksum(path) != checksum:
                return f"{name} was changed after it was written"
    except FileNotFoundError:
        return None if _format(directory) == 1 else f"{FILES} is missing"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, TypeError, AttributeError):
        return f"{FILES} is unreadable"
    return None


def _format(directory: Path) -> Any:
    """The format of a checkpoint, or None if it cannot be read."""
    try:
        return json.loads((directory / "spec" / "metadata").read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def is_evaluated(run: Path, step: int) -> bool:
    """Return whether the checkpoint of a step has a score."""
    return evaluation(run / STEPS / str(step)) is not None
