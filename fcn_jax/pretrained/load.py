"""Load a model by the path or hub id of a portable directory, run or checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.errors import CheckpointError, ConfigError
from fcn_jax.models.build import build
from fcn_jax.models.segmenter import Segmenter


def from_pretrained(
    source: str | Path,
    *,
    weights: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> Segmenter:
    """Load a model in eval mode.

        model = fcn_jax.from_pretrained("ORGANIZATION/NAME")
        mask = fcn_jax.Predictor(model)(image)

    `Predictor.from_checkpoint` takes the same sources, and also uses the classes' colors.

    Args:
        source: a portable directory, as `save_pretrained` writes it; a run or checkpoint; or the id
            of a model on the Hugging Face Hub, `ORGANIZATION/NAME` or
            `ORGANIZATION/NAME@REVISION`, which is downloaded once.
        weights: "ema" for averages of the weights, or "raw"; None for the averages if there are
            any. Portable directories hold one kind.
        dtype: compute dtype; None for that of the source.

    Raises:
        CheckpointError: there is no such model, it is damaged, or it requires a plugin that is not
            installed.
        ConfigError: `dtype` is neither "float32" nor "bfloat16".
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise ConfigError(f"dtype is {dtype!r}; expected 'float32' or 'bfloat16'")
    model, spec = checkpoint.load_model(source, weights)
    if dtype is None or dtype == spec.model.dtype:
        return model
    changed = dataclasses.replace(spec.model, dtype=dtype)
    network = nnx.eval_shape(lambda: build(changed, rngs=nnx.Rngs(0)))
    nnx.update(network, nnx.state(model))
    network.eval()
    return network


def source_of(model: str | Path) -> tuple[Path, checkpoint.Spec]:
    """The checkpoint directory of a source, and its spec, of a model with a head.

    Raises:
        CheckpointError: there is no such model, or it is a backbone alone.
    """
    directory = checkpoint.find(model)
    spec = checkpoint.read_spec(directory)
    if spec.model.head is None:
        raise CheckpointError(
            f"{directory}: holds backbone '{spec.model.backbone}' alone, which segments nothing; "
            "train a model from it first"
        )
    return directory, spec
