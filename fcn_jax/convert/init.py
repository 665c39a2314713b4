"""Initial weights for training: of PyTorch files, runs, checkpoints and converted models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fcn_jax import checkpoint
from fcn_jax.checkpoint import place, portable
from fcn_jax.convert import hub, reading
from fcn_jax.convert.load import fill, load_torch, starts_new_head
from fcn_jax.convert.report import LoadReport
from fcn_jax.errors import WeightsError
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.pytorch import kinds
from fcn_jax.pytorch.rules import Rule, Table


def init_from(
    model: Segmenter,
    source: str | Path,
    reinit: Sequence[str] = (),
    *,
    drop: Sequence[str] = (),
    key: str = "",
) -> LoadReport:
    """Fill a model with initial weights for training (`train --weights`), in place, all or nothing.

    Tensors whose shapes depend on the number of classes keep their initial values if a run or
    checkpoint has another number than the model; the report names them.

    Args:
        model: as `build_model` returns it.
        source: a weights file with PyTorch's names, or the name of published weights; or a run, a
            checkpoint, a converted model or a portable directory; or the id of a model on the hub,
            of this or another library.
        reinit: globs over names of tensors that keep the model's initial values; `head` for
            another head, or for another number of classes in a file.
        drop: globs over names of the source, of tensors that are dropped.
        key: which of several state dicts of a file to load, such as "model_ema"; for a run or
            checkpoint "raw" or "ema", by default the averages if there are any.

    Returns:
        A report of the use of each tensor.

    Raises:
        WeightsError: the tensors do not fit: all missing, surplus and misshapen names in one
            message.
        CheckpointError: the folder is not a checkpoint, or it is incomplete.
    """
    source = hub.localize(source, model.spec)
    if not is_checkpoint(source):
        return load_torch(model, source, reinit, drop=drop, key=key)
    directory = checkpoint.find(source)
    if key not in ("", "ema", "raw"):
        raise WeightsError(
            f"{source}: a checkpoint has no key '{key}'; it holds its weights, raw, and perhaps "
            "averages of them, ema"
        )
    chosen = checkpoint.choose_weights(directory, key or None)
    arrays = checkpoint.read_arrays(directory, chosen)
    scope, spec = "model", checkpoint.read_spec(directory).model
    if spec.head is None:
        scope, arrays = "backbone", {f"backbone.{name}": array for name, array in arrays.items()}
    report = LoadReport(
        str(directory), None, "fcn-jax", scope, key="" if chosen == "raw" else chosen
    )
    targets = leaves(model)
    sizes = spec.num_classes, model.spec.num_classes
    if spec.head is not None and sizes[0] != sizes[1]:
        resized = [
            name
            for name, leaf in targets.items()
            if name in arrays and _is_resized(arrays[name].shape, leaf.shape, sizes)
        ]
        report.resized.extend(resized)
        report = dataclasses.replace(report, classes=sizes)
        reinit = [*reinit, *resized]
    same_names = Table(*(Rule(path, path) for path in targets))
    new_head = starts_new_head(targets, reinit)

    def leftover(name: str) -> str | None:
        return reading.OTHER_HEAD if new_head and not name.startswith("backbone.") else None

    fill(targets, model.spec, arrays, same_names, report, reinit, drop, leftover)
    return report


def _is_resized(old: tuple[int, ...], new: tuple[int, ...], sizes: tuple[int, int]) -> bool:
    """Whether shapes differ, and only by the number of classes, which `sizes` holds."""
    if len(old) != len(new) or old == new:
        return False
    return all(pair == sizes for pair in zip(old, new, strict=True) if pair[0] != pair[1])


def is_checkpoint(source: str | Path) -> bool:
    """Whether a source is the directory of a run, checkpoint or portable model, not a weights file.

    A directory that holds nothing of a run or checkpoint is one, too, unless it holds weight files
    of other tools.
    """
    folder = Path(source)
    if place.is_remote(source):
        return True
    if not folder.is_dir():
        return False
    if portable.is_portable(folder):
        return True
    known = any((folder / name).exists() for name in (checkpoint.STEPS, "spec", "model"))
    return known or not any(
        child.suffix.lower() in kinds.WEIGHT_SUFFIXES
        for child in folder.iterdir()
        if child.is_file()
    )
