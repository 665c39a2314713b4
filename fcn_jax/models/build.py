"""From a `ModelSpec` to a network."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from fcn_jax.errors import ConfigError
from fcn_jax.models.channels import set_channels
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.models.spec import ResolvedModel, resolve
from fcn_jax.plugins.api import ModelSpec


def build(spec: ModelSpec, *, rngs: nnx.Rngs) -> Segmenter:
    """Build the model of a spec. Raises `ConfigError` and `PluginError` as `resolve` does."""
    model = resolve(spec)
    if "out" not in model.heads:
        raise ConfigError("a model needs a head, and the spec names none")
    if spec.task == "binary" and spec.num_classes != 1:
        raise ConfigError(
            f"task is 'binary' and num_classes is {spec.num_classes}; a binary model has one "
            "logit: num_classes=1"
        )
    backbone = _backbone(model, rngs)
    heads = {
        output: head.descriptor.build(
            head.options,
            head.features,
            num_classes=spec.num_classes,
            rngs=rngs,
            **_dtypes(spec),
        )
        for output, head in model.heads.items()
    }
    return Segmenter(backbone, heads["out"], spec, model.features, heads.get("aux"))


def build_backbone(spec: ModelSpec, *, rngs: nnx.Rngs) -> nnx.Module:
    """Build the backbone of a spec alone. Raises `ConfigError` and `PluginError` as `resolve`."""
    return _backbone(resolve(spec), rngs)


def _backbone(model: ResolvedModel, rngs: nnx.Rngs) -> nnx.Module:
    backbone = model.backbone.build(
        model.options, output_stride=model.output_stride, rngs=rngs, **_dtypes(model.spec)
    )
    set_channels(backbone, model.backbone.name, model.spec.in_channels, rngs)
    return backbone


def _dtypes(spec: ModelSpec) -> dict[str, Any]:
    return {"dtype": getattr(jnp, spec.dtype), "param_dtype": jnp.float32}


def build_model(
    backbone: str = "resnet18",
    head: str = "fcn32s",
    num_classes: int = 21,
    *,
    rngs: nnx.Rngs,
    **settings: Any,
) -> Segmenter:
    """Build a segmentation network from registered parts, with random initial parameters.

    Args:
        backbone: registered name; `fcn-jax plugins list` prints all.
        head: registered name.
        num_classes: size K of the logits' last axis, at least 1.
        rngs: source of the initial parameters, such as `nnx.Rngs(0)`.
        settings: other fields of `fcn_jax.api.ModelSpec`, such as `output_stride=8`,
            `dtype="bfloat16"`, `head_options={...}` or `aux_head="fcn"`.

    Returns:
        A module `model(x: f[N,H,W,C]) -> f[N,H,W,K]`, in train mode until `model.eval()`; C is 3 or
        the setting `in_channels`. `model.outputs(x)` returns the logits of the auxiliary head, too.

    Raises:
        ConfigError: an unknown name, option, output stride or dtype, or a head whose needs the
            backbone does not meet.
        PluginError: a broken plugin, or a name that two distributions claim.
    """
    return build(ModelSpec(backbone, head, num_classes, **settings), rngs=rngs)
