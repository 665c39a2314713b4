"""A weights file to a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.convert.engine import LoadRecord, load_into
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import build, build_backbone, by_name


def convert_file(
    file: Path, model: str, output: Path, *, num_classes: int | None = None, reinit: Sequence[str] = (), seed: int = 0
) -> LoadRecord:
    """Convert PyTorch weights to a checkpoint that `train --init` takes and, if it is a whole model, `eval` and `predict`.

    Args:
        file: a `.pth` or `.safetensors` file.
        model: a registered whole model, or a registered backbone for its weights alone.
        output: directory to write; must be missing or empty.
        num_classes: of a whole model; its own default if not given.
        reinit: globs over names whose tensors are drawn at random.
        seed: of what is drawn.

    Returns:
        A record of what went where; it is also kept in the checkpoint.

    Raises:
        ConfigError: `model` names neither a model nor a backbone.
        WeightsError: the file cannot be read or does not fit.
        CheckpointError: `output` is not empty.
    """
    checkpoint.require_empty(output)
    spec = by_name(model)
    if spec.head is None and num_classes is not None:
        raise ConfigError(f"--num-classes is for a whole model; '{model}' is a backbone")
    if num_classes is not None:
        spec = dataclasses.replace(spec, num_classes=num_classes)

    def draw() -> nnx.Module:
        rngs = nnx.Rngs(seed)
        return build_backbone(spec, rngs=rngs)[0] if spec.head is None else build(spec, rngs=rngs)

    module = nnx.eval_shape(draw)
    record = load_into(module, spec, file, reinit)
    if spec.head is not None and record.scope == "backbone":
        raise WeightsError(f"{file}: holds the backbone alone; convert it with --model {spec.backbone}")
    # Only now are initial values drawn, and only where the file leaves a gap: drawing takes longer than loading.
    gaps = [path for path, leaf in leaves(module).items() if isinstance(leaf.get_value(), jax.ShapeDtypeStruct)]
    if gaps:
        drawn = leaves(draw())
        targets = leaves(module)
        for path in gaps:
            targets[path].set_value(drawn[path].get_value())
    checkpoint.save_model(output, checkpoint.describe(spec, weights=dataclasses.asdict(record)), checkpoint.arrays(module))
    return record
