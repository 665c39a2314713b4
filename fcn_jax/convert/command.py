"""PyTorch weights to a checkpoint, and back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.convert.engine import export_from, load_into, starts_new_head, tables
from fcn_jax.convert.gaps import draw_gaps
from fcn_jax.convert.matching import LoadReport
from fcn_jax.errors import ConfigError, WeightsError, listing
from fcn_jax.models.names import WEIGHTS, leaves
from fcn_jax.models.segmenter import ModelSpec, build, build_backbone, by_name
from fcn_jax.pytorch import files, kinds
from fcn_jax.runtime import destination
from fcn_jax.runtime.memory import trim_malloc


def convert_file(
    source: str | Path,
    model: str,
    output: Path,
    *,
    head: str | None = None,
    aux_head: str | None = None,
    num_classes: int | None = None,
    output_stride: int | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
    aux_head_options: Mapping[str, Any] | None = None,
    reinit: Sequence[str] = (),
    drop: Sequence[str] = (),
    key: str = "",
    seed: int = 0,
) -> LoadReport:
    """Convert PyTorch weights to a checkpoint that `train --init` takes and, if it is a whole model, `eval` and `predict`.

    Args:
        source: a weights file, or the name of published weights of the model or its backbone.
        model: a registered whole model; or a registered backbone, with `head` for a whole model,
            without for its weights alone.
        output: directory to write; must be missing or empty.
        head: registered head to put on a backbone.
        aux_head: registered auxiliary head to put on a backbone; without it that of the file is
            left out.
        num_classes: of a whole model; by default the registered model's, with `head` 21.
        output_stride: of the backbone; its own default if not given.
        backbone_options: the backbone's own options, over the registered model's.
        head_options: the head's own options, over the registered model's.
        aux_head_options: the auxiliary head's own options, over the registered model's.
        reinit: globs over names whose tensors are drawn at random.
        drop: globs over the file's names, of tensors that are left out on purpose.
        key: which of several state dicts of the file to take, such as "model_ema".
        seed: of what is drawn.

    Returns:
        A record of what went where; it is also kept in the checkpoint.

    Raises:
        ConfigError: `model` names neither a model nor a backbone, or its parts and options do not
            go together.
        WeightsError: the file cannot be read or fetched, or does not fit.
        CheckpointError: `output` is not empty.
        WriteError: `output` cannot be written.
    """
    destination.check_new(output)
    checkpoint.require_empty(output)
    if Path(source).is_dir():
        raise WeightsError(
            f"{source}: {kinds.of_directory(Path(source))} (--to-torch takes a run or checkpoint)"
        )
    spec = by_name(model)
    if spec.head is not None and (head or aux_head):
        raise ConfigError(
            f"'{model}' is a whole model, with the head '{spec.head}'; --head and --aux-head are for a backbone"
        )
    if spec.head is None and head is None:
        given = {
            "--num-classes": num_classes is not None,
            "--aux-head": aux_head,
            "--head-option": head_options,
            "--aux-head-option": aux_head_options,
        }
        if surplus := [option for option, value in given.items() if value]:
            raise ConfigError(
                f"{', '.join(surplus)}: for a whole model; '{model}' is a backbone, which --head NAME puts a head on"
            )
    changes: dict[str, Any] = {
        "head": head,
        "aux_head": aux_head,
        "num_classes": num_classes,
        "output_stride": output_stride,
        "backbone_options": {**spec.backbone_options, **(backbone_options or {})},
        "head_options": {**spec.head_options, **(head_options or {})},
        "aux_head_options": {**spec.aux_head_options, **(aux_head_options or {})},
    }
    spec = dataclasses.replace(
        spec, **{name: value for name, value in changes.items() if value is not None}
    )
    if spec.aux_head is None and aux_head_options:
        raise ConfigError("--aux-head-option is for an auxiliary head; name it with --aux-head")

    def build_it() -> nnx.Module:
        return _build(spec, nnx.Rngs(seed))

    module = nnx.eval_shape(build_it)
    record = load_into(module, spec, source, reinit, drop=drop, key=key)
    if (
        spec.head is not None
        and record.scope == "backbone"
        and not starts_new_head(leaves(module), reinit, tables(spec))
    ):
        raise WeightsError(
            f"{source}: holds the backbone alone; convert it with --model {spec.backbone}, or draw the head at random with --reinit head"
        )
    draw_gaps(module, build_it, WEIGHTS)
    trim_malloc()  # what reading took: writing takes as much again
    checkpoint.save_model(
        output,
        checkpoint.describe(spec, weights=dataclasses.asdict(record)),
        checkpoint.arrays(module),
    )
    return record


@dataclasses.dataclass(frozen=True)
class ExportRecord:
    """What was written for PyTorch.

    Attributes:
        source: the checkpoint's directory.
        names: naming scheme.
        scope: "model", or "backbone" for a checkpoint of a backbone alone.
        tensors: names in the file.
        dropped: names that the file which the checkpoint was converted from had and this one lacks
            -> reason.
    """

    source: str
    names: str
    scope: str
    tensors: tuple[str, ...]
    dropped: Mapping[str, str]

    def __str__(self) -> str:
        """One line for a log."""
        line = f"{len(self.tensors)} tensors of {self.source} ({self.names} names, {self.scope})"
        lacks = (
            f"; {len(self.dropped)} had been dropped on import: {listing(self.dropped)}"
            if self.dropped
            else ""
        )
        return line + lacks


def export_file(source: str | Path, output: Path, *, names: str = "torchvision") -> ExportRecord:
    """Write a checkpoint's weights as a state dict that `load_state_dict(strict=True)` takes.

    Args:
        source: a run (its best checkpoint), a checkpoint or a converted model.
        output: `.pth` or `.safetensors` file to write, which must not exist; only `.pth` needs
            torch.
        names: naming scheme; "torchvision" gives `backbone.*` and `classifier.*`, and for a
            backbone alone its own names; "d2l" the book chapter's Sequential.

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
    return ExportRecord(
        str(directory), names, scope, tuple(tensors), (spec.weights or {}).get("dropped", {})
    )


def _build(spec: ModelSpec, rngs: nnx.Rngs) -> nnx.Module:
    return build_backbone(spec, rngs=rngs)[0] if spec.head is None else build(spec, rngs=rngs)
