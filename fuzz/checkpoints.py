"""Checkpoints with removed, emptied, damaged or exchanged files.

The loaded values must be the saved ones.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fuzz import damage, product
from fuzz.cases import Trial, UndetectableError, mutation

Rng = np.random.Generator
Loaded = tuple[dict[str, np.ndarray], str]


@functools.cache
def saved(seed: int = 3) -> tuple[Path, Loaded]:
    """Return a checkpoint and its contents. Each process writes it once."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-checkpoint-")) / "model"
    product.save_checkpoint(folder, product.tiny_model(seed))
    return folder, product.load_checkpoint(folder)


def copy(place: Path, seed: int = 3) -> Path:
    """Copy the checkpoint to a folder, so that it can be changed."""
    return Path(shutil.copytree(saved(seed)[0], place / "model"))


def as_saved(changed: str = "") -> Callable[[Loaded], str | None]:
    """Check that the loaded contents are the saved ones.

    Args:
        changed: the changed file. If it is JSON without a checksum, changed words in it cannot be
            detected.
    """
    arrays, spec = saved()[1]

    def right(loaded: Loaded) -> str | None:
        wrong = [
            name
            for name, value in arrays.items()
            if name not in loaded[0] or loaded[0][name].tobytes() != value.tobytes()
        ]
        if wrong or loaded[0].keys() != arrays.keys():
            return f"{changed}: other values in {wrong}"
        if loaded[1] != spec:
            if changed == "spec/metadata":
                raise UndetectableError(
                    "no checksum: other words in the JSON of a checkpoint's spec, in a valid "
                    "structure"
                )
            return f"{changed}: another spec"
        return None

    return right


def _trial(folder: Path, changed: Path) -> Trial:
    """Load a checkpoint in which one file has changed."""
    return Trial(
        call=lambda: product.load_checkpoint(folder),
        right=as_saved(str(changed.relative_to(folder))),
        names=["model"],
    )


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


@mutation("checkpoints", 8)
def file_damaged(rng: Rng, place: Path) -> Trial:
    """One file has changed, missing or inserted bytes."""
    folder = copy(place)
    path = _files(folder)[int(rng.integers(len(_files(folder))))]
    path.write_bytes(damage.some(rng, path.read_bytes()))
    return _trial(folder, path)


@mutation("checkpoints", 4)
def file_gone(rng: Rng, place: Path) -> Trial:
    """One file is removed, emptied, or replaced by a folder."""
    folder = copy(place)
    path = _files(folder)[int(rng.integers(len(_files(folder))))]
    what = int(rng.integers(3))
    path.unlink()
    if what == 1:
        path.touch()
    elif what == 2:
        path.mkdir()
    return _trial(folder, path)


@mutation("checkpoints", 2)
def files_exchanged(rng: Rng, place: Path) -> Trial:
    """One file of the checkpoint replaces another."""
    folder = copy(place)
    files = _files(folder)
    first, second = (files[k] for k in rng.permutation(len(files))[:2])
    shutil.copy(first, second)
    return _trial(folder, second)


@mutation("checkpoints", 1)
def folder_gone(rng: Rng, place: Path) -> Trial:
    """A folder is removed, or the checkpoint is moved into a subfolder."""
    folder = copy(place)
    what = int(rng.integers(3))
    if what == 2:
        folder.rename(place / "moved")
        folder.mkdir()
        (place / "moved").rename(folder / "inner")
    else:
        shutil.rmtree(folder / ["model", "spec"][what])
    return Trial(call=lambda: product.load_checkpoint(folder), names=["model"])


@mutation("checkpoints", 1)
def files_added(rng: Rng, place: Path) -> Trial:
    """Files that operating systems leave behind change nothing."""
    folder = copy(place)
    name = str(
        rng.choice(
            [
                ".DS_Store",
                "Thumbs.db",
                "notes.txt",
                "model/.DS_Store",
                "spec/._metadata",
                "backup/model",
            ]
        )
    )
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\0\0\0\1Bud1")
    return Trial(
        call=lambda: product.load_checkpoint(folder), right=as_saved(name), refusable=False
    )


@mutation("checkpoints", 4)
def spec_changed(rng: Rng, place: Path) -> Trial:
    """Keys are missing, of another type, of another model, or of a newer format."""
    folder = copy(place)
    path = folder / "spec" / "metadata"
    table = json.loads(path.read_text())
    odd: list[object] = [None, 3, "x", [], {}, -1, 1e999, [[1, 2]], "tiny", True]
    what = int(rng.integers(7))
    value = odd[int(rng.integers(len(odd)))]
    if what == 0:
        del table[str(rng.choice(list(table)))]
    elif what == 1:
        table[str(rng.choice([key for key in table if key != "weights"]))] = value
    elif what == 2:
        key = str(rng.choice(list(table["model"])))
        if table["model"][key] == value:
            value = "other"
        table["model"][key] = value
    elif what == 3:
        table["classes"][str(rng.choice(["names", "palette"]))] = value
    elif what == 4:
        table["format"] = int(rng.choice([0, 2, 99]))
    elif what == 5:
        table["classes"]["names"] = table["classes"]["names"][:-1]
    else:
        table["model"]["num_classes"] += 1
    path.write_text(json.dumps(table))
    return _trial(folder, path)


@mutation("checkpoints", 1)
def no_checkpoint_at_all(rng: Rng, place: Path) -> Trial:
    """The path is a file, an empty folder, a run without checkpoints, or missing."""
    path = place / "model"
    what = int(rng.integers(5))
    if what == 0:
        path.write_bytes(b"PK\x03\x04")
    elif what == 1:
        path.mkdir()
    elif what == 2:
        (path / "checkpoints").mkdir(parents=True)
    elif what == 3:
        (path / "checkpoints" / "12.orbax-checkpoint-tmp-3").mkdir(parents=True)
    return Trial(call=lambda: product.load_checkpoint(path), names=["model"])
