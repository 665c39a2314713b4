"""The names of Swin transformers in PyTorch, and timm's network as the reference."""

from __future__ import annotations

from typing import Any

from fcn_jax.api import TorchBridge, Weights
from fcn_jax.errors import WeightsError
from fcn_jax.pytorch import Rule, Table, conv, drop, import_torchvision, layer_norm, linear
from fcn_jax_swin.architecture import PATCH, Architecture


def bridge(plan: Architecture, weights: dict[str, Weights]) -> TorchBridge:
    """The link between a Swin transformer and PyTorch's.

    Files have timm's names, or those of the authors' code, where the merging of patches ends a
    stage instead of beginning the next.
    """
    reason = "the ImageNet classifier, which a backbone does not have"
    unused = Table(
        drop("head.*", reason),
        drop("norm.*", reason),
        drop("*.relative_position_index", "computed from the window's size"),
        drop("*.attn_mask", "computed from the image's size"),
    )
    timm = _table(0)
    return TorchBridge(
        tables=timm,
        standalone_tables={"torchvision": timm + unused, "microsoft": _table(-1) + unused},
        reference=lambda options, output_stride: _reference(plan, options),
        weights=weights,
    )


def _table(offset: int) -> Table:
    """Names, if the number of the stage that a merging belongs to differs from ours."""
    here = "layers.{s}.blocks.{b}"
    mergings = [
        rule
        for stage in (1, 2, 3)
        for theirs, ours in [(f"layers.{stage + offset}.downsample", f"layers.{stage}.downsample")]
        for rule in (
            *layer_norm(f"{theirs}.norm", f"{ours}.norm"),
            *linear(f"{theirs}.reduction", f"{ours}.reduction", bias=False),
        )
    ]
    table = "attn.relative_position_bias_table"
    return Table(
        conv("patch_embed.proj", bias=True),
        layer_norm("patch_embed.norm"),
        mergings,
        layer_norm(f"{here}.norm{{k}}"),
        Rule(f"{here}.{table}", f"{here}.{table}"),
        linear(f"{here}.attn.qkv"),
        linear(f"{here}.attn.proj"),
        linear(f"{here}.mlp.fc{{k}}"),
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
            f"{error}: a comparison of a Swin transformer with PyTorch needs timm; "
            "pip install --no-deps timm"
        ) from error
    return timm


def _reference(plan: Architecture, options: Any) -> Any:
    """The network of timm without its classifier, which returns its features by name."""
    import torch

    network = import_timm().create_model(
        plan.name,
        embed_dim=plan.width,
        depths=plan.depths,
        num_heads=tuple(plan.heads * 2**stage for stage in range(4)),
        window_size=plan.window,
        img_size=32 * plan.window,
        dynamic_img_size=True,
        always_partition=options.always_partition,
        drop_path_rate=options.drop_path_rate,
    )
    network.norm = network.head = torch.nn.Identity()

    class Reference(type(network)):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            height, width = x.shape[-2:]
            x = torch.nn.functional.pad(x, (0, -width % PATCH, 0, -height % PATCH))
            maps = self.forward_intermediates(x, intermediates_only=True)
            return {f"stage{number}": x for number, x in enumerate(maps)}

    network.__class__ = Reference
    return network
