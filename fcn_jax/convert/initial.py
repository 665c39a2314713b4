"""Where a training starts: PyTorch weights, by file or name, a run, or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fcn_jax import checkpoint
from fcn_jax.convert import reading
from fcn_jax.convert.engine import load_named, load_torch, starts_new_head
from fcn_jax.convert.matching import LoadReport
from fcn_jax.errors import WeightsError
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.pytorch import kinds
from fcn_jax.pytorch.rules import Table


def load_initial(
    model: Segmenter,
    source: str | Path,
    reinit: Sequence[str] = (),
    *,
    drop: Sequence[str] = (),
    key: str = "",
) -> LoadReport:
    """Fill a model, in place, all or nothing, from what `train --init` takes.

    Args:
        model: as `build_model` returns it.
        source: a weights file in PyTorch's names, or the name of published weights; or a run, a
            checkpoint or a converted model.
        reinit: globs over names, whose tensors keep the model's initial values; `head` for another
            number of classes or another head.
        drop: globs over names of the source, of tensors that are left out on purpose.
        key: which of several state dicts of a file to take, such as "model_ema".

    Returns:
        A record of what went where.

    Raises:
        WeightsError: the tensors do not fit: all missing, surplus and misshapen names in one
            message.
        CheckpointError: not a checkpoint, or incomplete.
    """
    if not Path(source).is_dir() or _is_no_checkpoint(Path(source)):
        return load_torch(model, source, reinit, drop=drop, key=key)
    directory = checkpoint.find(source)
    if key:
        raise WeightsError(
            f"{source}: a checkpoint holds one network, so there is no key '{key}' in it"
        )
    spec = checkpoint.read_spec(directory).model
    arrays = checkpoint.read_arrays(directory)
    scope = "model"
    if spec.head is None:
        scope, arrays = "backbone", {f"backbone.{name}": array for name, array in arrays.items()}
    record = LoadReport(str(directory), None, "fcn-jax", scope, {}, {}, [], [])
    new_head = starts_new_head(leaves(model), reinit)

    def leftover(name: str) -> str | None:
        return reading.HEAD_LEFT if new_head and not name.startswith("backbone.") else None

    load_named(model, model.spec, arrays, _SameNames(), record, reinit, drop, leftover)
    return record


def _is_no_checkpoint(folder: Path) -> bool:
    """Whether a folder holds weight files of other tools, such as a download of a model hub, and nothing of a run."""
    known = any((folder / name).exists() for name in (checkpoint.STEPS, "spec", "model"))
    return not known and any(
        child.suffix.lower() in kinds.WEIGHT_SUFFIXES
        for child in folder.iterdir()
        if child.is_file()
    )


class _SameNames(Table):
    """The table of a checkpoint of our own: every name and value stays what it is."""

    def __init__(self) -> None:
        from fcn_jax.pytorch.rules import Rule

        super().__init__(Rule("", ""))

    def _first(self, name: str, source: str, target: str):  # type: ignore[no-untyped-def]
        return name, self.rules[0]
