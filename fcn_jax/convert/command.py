"""PyTorch weights to a checkpoint, and back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from flax import nnx

from fcn_jax import checkpoint, destination
from fcn_jax.convert import files
from fcn_jax.convert.engine import export_from, load_into
from fcn_jax.convert.gaps import draw_gaps
from fcn_jax.convert.matching import LoadRecord
from fcn_jax.errors import ConfigError, WeightsError, listing
from fcn_jax.memory import give_back_freed_memory
from fcn_jax.models.names import WEIGHTS
from fcn_jax.models.segmenter import ModelSpec, build, build_backbone, by_name


def convert_file(
    source: str | Path, model: str, output: Path, *, num_classes: int | None = None, reinit: Sequence[str] = (), seed: int = 0
) -> LoadRecord:
    """Convert PyTorch weights to a checkpoint that `train --init` takes and, if it is a whole model, `eval` and `predict`.

    Args:
        source: a `.pth` or `.safetensors` file, or the name of published weights of the model or its backbone.
        model: a registered whole model, or a registered backbone for its weights alone.
        output: directory to write; must be missing or empty.
        num_classes: of a whole model; its own default if not given.
        reinit: globs over names whose tensors are drawn at random.
        seed: of what is drawn.

    Returns:
        A record of what went where; it is also kept in the checkpoint.

    Raises:
        ConfigError: `model` names neither a model nor a backbone.
        WeightsError: the file cannot be read or fetched, or does not fit.
        CheckpointError: `output` is not empty.
        WriteError: `output` cannot be written.
    """
    destination.check_new(output)
    checkpoint.require_empty(output)
    if Path(source).is_dir():
        raise WeightsError(f"{source}: a directory; weights to convert are a file (--to-torch takes a run or checkpoint)")
    spec = by_name(model)
    if spec.head is None and num_classes is not None:
        raise ConfigError(f"--num-classes is for a whole model; '{model}' is a backbone")
    if num_classes is not None:
        spec = dataclasses.replace(spec, num_classes=num_classes)

    def build_it() -> nnx.Module:
        return _build(spec, nnx.Rngs(seed))

    module = nnx.eval_shape(build_it)
    record = load_into(module, spec, source, reinit)
    if spec.head is not None and record.scope == "backbone":
        raise WeightsError(f"{source}: holds the backbone alone; convert it with --model {spec.backbone}")
    draw_gaps(module, build_it, WEIGHTS)
    give_back_freed_memory()  # what reading took: writing takes as much again
    checkpoint.save_model(output, checkpoint.describe(spec, weights=dataclasses.asdict(record)), checkpoint.arrays(module))
    return record


@dataclasses.dataclass(frozen=True)
class ExportRecord:
    """What was written for PyTorch.

    Attributes:
        source: the checkpoint's directory.
        names: naming scheme.
        scope: "model", or "backbone" for a checkpoint of a backbone alone.
        tensors: names in the file.
        dropped: names that the file which the checkpoint was converted from had and this one lacks -> reason.
    """

    source: str
    names: str
    scope: str
    tensors: tuple[str, ...]
    dropped: Mapping[str, str]

    def __str__(self) -> str:
        """One line for a log."""
        line = f"{len(self.tensors)} tensors of {self.source} ({self.names} names, {self.scope})"
        lacks = f"; {len(self.dropped)} had been dropped on import: {listing(self.dropped)}" if self.dropped else ""
        return line + lacks


def export_file(source: str | Path, output: Path, *, names: str = "torchvision") -> ExportRecord:
    """Write a checkpoint's weights as a state dict that `load_state_dict(strict=True)` takes.

    Args:
        source: a run (its best checkpoint), a checkpoint or a converted model.
        output: `.pth` or `.safetensors` file to write, which must not exist; only `.pth` needs torch.
        names: naming scheme; "torchvision" gives `backbone.*` and `classifier.*`, and for a backbone alone its own names; "d2l" the
            book chapter's Sequential.

    Raises:
        CheckpointError: not a checkpoint, or incomplete.
        ConfigError: the model's parts do not offer the naming scheme.
        WeightsError: `output` exists or ends otherwise, or torch is needed and missing.
        WriteError: `output` cannot be written.
    """
    files.require_suffix(output)
    if os.path.lexists(output):
        raise WeightsError(f"{output}: exists; name another file")
    destination.check_new(output)
    directory = checkpoint.find(source)
    spec = checkpoint.read_spec(directory)
    module = nnx.eval_shape(lambda: _build(spec.model, nnx.Rngs(0)))
    checkpoint.fill(module, checkpoint.read_arrays(directory), directory)
    tensors = export_from(module, spec.model, names)
    files.write(output, tensors)
    scope = "backbone" if spec.model.head is None else "model"
    return ExportRecord(str(directory), names, scope, tuple(tensors), (spec.weights or {}).get("dropped", {}))


def _build(spec: ModelSpec, rngs: nnx.Rngs) -> nnx.Module:
    return build_backbone(spec, rngs=rngs)[0] if spec.head is None else build(spec, rngs=rngs)
