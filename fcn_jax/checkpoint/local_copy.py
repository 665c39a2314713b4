"""Local copies of checkpoints in object stores, to evaluate, predict, export or start from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

from fcn_jax.checkpoint import files, place
from fcn_jax.errors import CheckpointError
from fcn_jax.runtime import atomic, cache

_PARTS = ("model", files.EMA, "spec")
"""The items that a model needs."""

_RECORDS = ("config.json", "versions.json")
"""The files of a run that say how to evaluate it."""


def store_of(run: Path) -> Path | None:
    """Return where a run directory's checkpoints are, if its recipe names another place.

    Raises:
        ConfigError: that place cannot be used here.
    """
    try:
        train = json.loads((run / "config.json").read_bytes())["train"]
        named = train.get("checkpoint_dir")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return place.place(named) if isinstance(named, str) else None


def of(directory: Path, run: Path | None = None) -> Path:
    """Copy a checkpoint to the local disk, unless the same one is there.

    Args:
        directory: the checkpoint in an object store.
        run: run directory to copy it to; if None, a folder in the cache.

    Raises:
        CheckpointError: it is a portable model, or the copy does not match the list of its files.
        WriteError: it cannot be written.
    """
    above = directory.parent
    in_run = above.name == files.STEPS
    if run is None:
        digest = hashlib.sha256(str(above).encode()).hexdigest()[:12]
        run = cache.folder() / "checkpoints" / f"{above.parent.name}-{digest}"
        for name in _RECORDS if in_run else ():
            with contextlib.suppress(FileNotFoundError):
                place.copy(above.parent / name, run / name)
    target = run / files.STEPS / directory.name
    if not (directory / files.FILES).exists():
        raise CheckpointError(
            f"{directory}: only checkpoints of runs are read from an object store; copy this "
            "model to a local folder"
        )
    listed = (directory / files.FILES).read_bytes()
    if (target / files.FILES).exists():
        if (target / files.FILES).read_bytes() == listed and files.fault(target) is None:
            _copy_score(directory, target)
            return target
        shutil.rmtree(target, ignore_errors=True)
    with atomic.new_folder(target) as temporary:
        for part in _PARTS:
            if (directory / part).is_dir():
                for name, path, _ in place.files_below(directory / part):
                    place.copy(path, temporary / part / name)
        place.copy(directory / files.FILES, temporary / files.FILES)
        _copy_score(directory, temporary)
        if fault := files.fault(temporary):
            raise CheckpointError(f"{directory}: its copy is incomplete: {fault}; try again")
    return target


def _copy_score(directory: Path, target: Path) -> None:
    for name in (files.SCORE, files.EVIDENCE):
        with contextlib.suppress(FileNotFoundError):
            place.copy(directory / name, target / name)
