"""The names of ConvNeXts in PyTorch, and timm's network as the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcn_jax.api import TorchBridge, Weights
from fcn_jax.errors import WeightsError
from fcn_jax.pytorch import Op, Rule, Table, conv, drop, import_torchvision, layer_norm, linear
from fcn_jax_convnext.architecture import Architecture


def bridge(plan: Architecture, weights: dict[str, Weights]) -> TorchBridge:
    """The link between a ConvNeXt and PyTorch's.

    Files have timm's names, or those of the authors' code.
    """
    timm, reason = _timm_table(plan), "the ImageNet classifier, which a backbone does not have"
    return TorchBridge(
        tables=timm,
        standalone_tables={
            "torchvision": timm + Table(drop("head.*", reason)),
            "facebook": _facebook_table() + Table(drop("norm.*", reason), drop("head.*", reason)),
        },
        reference=lambda options, output_stride: _reference(plan, options, output_stride),
        weights=weights,
    )


def _with_shape(name: str, ones: tuple[int, ...], op: Op) -> Op:
    """An operation on tensors that have further axes of length 1 in PyTorch, at `ones`."""

    def to_jax(x: np.ndarray) -> np.ndarray:
        if any(axis >= x.ndim or x.shape[axis] != 1 for axis in ones):
            raise ValueError(f"{name} needs length 1 along the axes {ones}, got shape {x.shape}")
        return op.to_jax(x.squeeze(ones))

    return Op(name, to_jax, lambda x: np.expand_dims(op.to_torch(x), ones))


_LINEAR = linear("", bias=False)[0].op
_POINTWISE = _with_shape("1x1 conv OI11 <-> IO", (2, 3), _LINEAR)
_VECTOR = _with_shape("vector 111C <-> C", (0, 1, 2), layer_norm("")[0].op)


def _timm_table(plan: Architecture) -> Table:
    here = "stages.{s}.blocks.{b}"
    op = _POINTWISE if plan.has_convolutions else _LINEAR
    return Table(
        conv("stem.0", "stem.conv", bias=True),
        layer_norm("stem.1", "stem.norm"),
        layer_norm("stages.{s}.downsample.0", "stages.{s}.downsample.norm"),
        conv("stages.{s}.downsample.1", "stages.{s}.downsample.conv", bias=True),
        conv(f"{here}.conv_dw", bias=True),
        layer_norm(f"{here}.norm"),
        Rule(f"{here}.mlp.fc{{k}}.weight", f"{here}.fc{{k}}.kernel", op),
        Rule(f"{here}.mlp.fc{{k}}.bias", f"{here}.fc{{k}}.bias"),
        layer_norm(f"{here}.mlp.grn", f"{here}.grn"),
        Rule(f"{here}.gamma", f"{here}.gamma.scale"),
    )


def _facebook_table() -> Table:
    """The names of facebookresearch/ConvNeXt and ConvNeXt-V2, which have linear layers only."""
    theirs, ours = "stages.{s}.{b}", "stages.{s}.blocks.{b}"
    return Table(
        conv("downsample_layers.0.0", "stem.conv", bias=True),
        layer_norm("downsample_layers.0.1", "stem.norm"),
        layer_norm("downsample_layers.{s}.0", "stages.{s}.downsample.norm"),
        conv("downsample_layers.{s}.1", "stages.{s}.downsample.conv", bias=True),
        conv(f"{theirs}.dwconv", f"{ours}.conv_dw", bias=True),
        layer_norm(f"{theirs}.norm", f"{ours}.norm"),
        linear(f"{theirs}.pwconv{{k}}", f"{ours}.fc{{k}}"),
        Rule(f"{theirs}.grn.gamma", f"{ours}.grn.scale", _VECTOR),
        Rule(f"{theirs}.grn.beta", f"{ours}.grn.bias", _VECTOR),
        Rule(f"{theirs}.gamma", f"{ours}.gamma.scale"),
    )


def import_timm() -> Any:
    """Import and return the package timm.

    Raises:
        WeightsError: torch, torchvision or timm is not installed.
    """
    import_torchvision()  # timm imports it, too
    try:
        import timm
    except ImportError as error:
        raise WeightsError(
            f"{error}: a comparison of a ConvNeXt with PyTorch needs timm; "
            "pip install --no-deps timm"
        ) from error
    return timm


def _reference(plan: Architecture, options: Any, output_stride: int) -> Any:
    """The network of timm without its classifier, which returns its features by name."""
    import torch

    network = import_timm().create_model(
        plan.name,
        depths=plan.depths,
        dims=plan.channels,
        output_stride=output_stride,
        drop_path_rate=options.drop_path_rate,
    )
    network.head = torch.nn.Identity()

    class Reference(type(network)):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            maps = self.forward_intermediates(x, intermediates_only=True)
            return {f"stage{number}": x for number, x in enumerate(maps)}

    network.__class__ = Reference
    return network
