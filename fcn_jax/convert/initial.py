"""Where a training starts: PyTorch weights, by file or name, a run, or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fcn_jax import checkpoint
from fcn_jax.convert.engine import load_named, load_torch
from fcn_jax.convert.matching import LoadRecord
from fcn_jax.convert.rules import Table
from fcn_jax.models.segmenter import Segmenter


def load_initial(model: Segmenter, source: str | Path, reinit: Sequence[str] = ()) -> LoadRecord:
    """Fill a model, in place, all or nothing, from what `train --init` takes.

    Args:
        model: as `build_model` returns it.
        source: a `.pth` or `.safetensors` file in PyTorch's names, or the name of published weights; or a run, a checkpoint or a
            converted model.
        reinit: globs over names, whose tensors keep the model's initial values; `head` for another number of classes.

    Returns:
        A record of what went where.

    Raises:
        WeightsError: the tensors do not fit: all missing, surplus and misshapen names in one message.
        CheckpointError: not a checkpoint, or incomplete.
    """
    if not Path(source).is_dir():
        return load_torch(model, source, reinit)
    directory = checkpoint.find(source)
    spec = checkpoint.read_spec(directory).model
    arrays = checkpoint.read_arrays(directory)
    scope = "model"
    if spec.head is None:
        scope, arrays = "backbone", {f"backbone.{name}": array for name, array in arrays.items()}
    record = LoadRecord(str(directory), None, "fcn-jax", scope, {}, {}, [], [])
    load_named(model, model.spec, arrays, _SameNames(), record, reinit)
    return record


class _SameNames(Table):
    """The table of a checkpoint of our own: every name and value stays what it is."""

    def __init__(self) -> None:
        from fcn_jax.convert.rules import Rule

        super().__init__(Rule("", ""))

    def _first(self, name: str, source: str, target: str):  # type: ignore[no-untyped-def]
        return name, self.rules[0]
