"""The names of mix transformers in PyTorch, and the reference of segmentation-models-pytorch."""

from __future__ import annotations

from typing import Any

from fcn_jax.api import TorchBridge, Weights
from fcn_jax.errors import WeightsError
from fcn_jax.pytorch import Table, conv, drop, import_torchvision, layer_norm, linear
from fcn_jax_mit.architecture import HEADS, REDUCTIONS, Architecture


def bridge(plan: Architecture, weights: dict[str, Weights]) -> TorchBridge:
    """The link between a mix transformer and PyTorch's, by the names of the authors' code."""
    here = "block{s}.{b}"
    table = Table(
        conv("patch_embed{s}.proj", bias=True),
        layer_norm("patch_embed{s}.norm"),
        layer_norm("norm{s}"),
        layer_norm(f"{here}.norm{{k}}"),
        *(linear(f"{here}.attn.{name}") for name in ("q", "kv", "proj")),
        conv(f"{here}.attn.sr", bias=True),
        layer_norm(f"{here}.attn.norm"),
        linear(f"{here}.mlp.fc{{k}}"),
        conv(f"{here}.mlp.dwconv.dwconv", f"{here}.mlp.dwconv", bias=True),
    )
    return TorchBridge(
        tables=table,
        standalone_tables=table
        + Table(drop("head.*", "the ImageNet classifier, which a backbone does not have")),
        reference=lambda options, output_stride: _reference(plan, options),
        weights=weights,
    )


def import_smp() -> Any:
    """Import and return the module of mix transformers of segmentation-models-pytorch.

    Raises:
        WeightsError: torch, torchvision, timm or segmentation-models-pytorch is not installed.
    """
    import_torchvision()  # they import it, too
    try:
        from segmentation_models_pytorch.encoders import mix_transformer
    except ImportError as error:
        raise WeightsError(
            f"{error}: a comparison of a mix transformer with PyTorch needs "
            "segmentation-models-pytorch; pip install --no-deps segmentation-models-pytorch timm"
        ) from error
    return mix_transformer


def _reference(plan: Architecture, options: Any) -> Any:
    """The network of segmentation-models-pytorch, which returns its features by name."""
    import functools

    smp = import_smp()

    class Reference(smp.MixVisionTransformer):  # type: ignore[name-defined]
        def forward(self, x: Any) -> Any:
            maps = self.forward_features(x)
            return {f"stage{number}": x for number, x in enumerate(maps, start=1)}

    return Reference(
        embed_dims=plan.channels,
        num_heads=HEADS,
        qkv_bias=True,
        norm_layer=functools.partial(smp.LayerNorm, eps=1e-6),
        depths=plan.depths,
        sr_ratios=REDUCTIONS,
        drop_path_rate=options.drop_path_rate,
    )
