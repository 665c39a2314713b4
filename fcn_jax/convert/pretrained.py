"""A registered model with its published weights, in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from fcn_jax.convert.engine import load_torch
from fcn_jax.convert.gaps import draw_gaps
from fcn_jax.errors import ConfigError
from fcn_jax.models.segmenter import Segmenter, build, by_name


def load(
    model: str,
    weights: str | Path | Mapping[str, Any],
    *,
    reinit: Sequence[str] = (),
    drop: Sequence[str] = (),
    key: str = "",
    num_classes: int | None = None,
    aux_head: bool = True,
    dtype: str = "float32",
    rngs: nnx.Rngs | None = None,
) -> Segmenter:
    """Build a registered whole model and fill it with weights; it is in eval mode.

        model = fcn_jax.load("fcn_resnet50", weights="COCO_WITH_VOC_LABELS_V1")
        mask = fcn_jax.Predictor(model)(image)

    Args:
        model: registered name; `fcn-jax plugins list` shows them.
        weights: name of published weights, which are fetched once; a weights file; or a state dict.
            See `load_torch`.
        reinit: globs over names that keep their random initial values.
        drop: globs over the file's names, of tensors that are left out on purpose.
        key: which of several state dicts of a file to take, such as "model_ema".
        num_classes: default: the model's. Another number needs `reinit` for the tensors that depend
            on it.
        aux_head: keep the auxiliary head, which only training uses, where the model has one.
            Without it the file's is left out.
        dtype: compute dtype, "float32" or "bfloat16".
        rngs: for what `reinit` names, and left as it is; `nnx.Rngs(0)` if not given.

    Raises:
        ConfigError: no whole model of that name.
        WeightsError: the weights cannot be had, or do not fit.
        PluginError: a broken plugin.
    """
    spec = by_name(model)
    if spec.head is None:
        raise ConfigError(
            f"'{model}' is a backbone; load takes whole models. Give it a head with build_model, then load_torch"
        )
    changes: dict[str, Any] = {"dtype": dtype} if aux_head else {"dtype": dtype, "aux_head": None}
    if num_classes is not None:
        changes["num_classes"] = num_classes
    spec = dataclasses.replace(spec, **changes)

    def build_it() -> Segmenter:
        return build(spec, rngs=nnx.Rngs(0) if rngs is None else nnx.clone(rngs))

    network = nnx.eval_shape(build_it)
    load_torch(network, weights, reinit, drop=drop, key=key)
    draw_gaps(network, build_it)
    network.eval()
    return network
