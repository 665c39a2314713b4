"""The files of checkpoints: complete ones, damaged ones, and their scores, without Orbax."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcn_jax.checkpoint import place
from fcn_jax.errors import listing

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

_NOT_LISTED = frozenset({FILES, SCORE, place.COMMIT, "_CHECKPOINT_METADATA"})
"""Files that are written after the list, or that do not describe the contents."""


def steps(folder: Path) -> list[int]:
    """The steps of complete checkpoints, ascending."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if is_named_by_step(path) and path.is_dir() and place.is_complete(path)
    )


def is_named_by_step(path: Path) -> bool:
    """Return whether a folder has the name of a complete checkpoint."""
    return path.name.isascii() and path.name.isdecimal()


def rank(directory: Path) -> float:
    """Return a checkpoint's mIoU, or -1 if it was not evaluated or no pixel was counted."""
    value = (evaluation(directory) or {METRIC: None})[METRIC]
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else -1.0


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints of a run are kept. One is kept if any of these keeps it.

    Attributes:
        latest: the last ones, at least 1.
        best: those with the highest mIoU.
        every_steps: the first one at or after each multiple of this number of steps; 0 for none.
    """

    latest: int = 2
    best: int = 1
    every_steps: int = 0

    def kept(self, ranks: Mapping[int, float]) -> set[int]:
        """Return the steps to keep.

        Args:
            ranks: `rank` of each checkpoint by its step.
        """
        steps = sorted(ranks)
        kept = set(steps[-self.latest :])
        scored = [step for step in reversed(steps) if ranks[step] >= 0]
        kept.update(sorted(scored, key=lambda step: ranks[step], reverse=True)[: self.best])
        if self.every_steps:
            firsts = {step // self.every_steps: step for step in reversed(steps)}
            kept.update(step for multiple, step in firsts.items() if multiple)
        return kept


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
    """Write the list of a checkpoint's files: a mapping of name to [bytes, CRC-32].

    In an object store, which has its own checksums, None takes the place of the CRC-32.
    """
    files = {
        name: [size, None if place.is_remote(path) else _checksum(path)]
        for name, path, size in place.files_below(directory)
        if path.name not in _NOT_LISTED
    }
    place.write_json(directory / FILES, files)


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
            if place.size_of(path) != size:
                return f"{name} has {place.size_of(path)} bytes instead of {size}"
            if checksum is not None and _checksum(path) != checksum:
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
