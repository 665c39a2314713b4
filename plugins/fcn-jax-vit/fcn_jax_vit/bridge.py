"""The names of vision transformers in PyTorch, and timm's network as the reference."""

from __future__ import annotations

from typing import Any

from fcn_jax.api import TorchBridge, Weights
from fcn_jax.errors import WeightsError
from fcn_jax.pytorch import Rule, Table, conv, drop, import_torchvision, layer_norm, linear
from fcn_jax_vit.architecture import Architecture, ViTOptions


def bridge(plan: Architecture, weights: dict[str, Weights]) -> TorchBridge:
    """The link between a vision transformer and timm's.

    The files of facebookresearch/dinov2 without registers have the same names.
    """
    classifier = "the classifier, which a backbone does not have"

    def standalone(options: ViTOptions) -> Table:
        last = plan.blocks(options)[-1]
        unused = [
            *(
                drop(f"blocks.{number}.*", "after the last feature")
                for number in range(last, plan.depth)
            ),
            *([] if options.normalize else [drop("norm.*", "the option normalize is off")]),
            drop("mask_token", "for the training of the published weights"),
            *(drop(glob, classifier) for glob in ("head.*", "fc_norm.*", "pre_logits.*")),
        ]
        return _table(plan) + Table(*unused)

    def tables(options: ViTOptions) -> dict[str, Table]:
        # "smp": the encoder of the DPT of segmentation_models_pytorch.
        return {
            "torchvision": _table(plan),
            "smp": standalone(options).under("encoder.model.", ""),
        }

    return TorchBridge(
        tables=tables,
        standalone_tables=standalone,
        reference=lambda options, output_stride: _reference(plan, options),
        weights=weights,
    )


def _table(plan: Architecture) -> Table:
    here = "blocks.{b}"
    scale = "gamma_{k}" if plan.is_rotary else "ls{k}.gamma"
    return Table(
        conv("patch_embed.proj", "embed.proj", bias=True),
        *(Rule(name, f"embed.{name}") for name in ("cls_token", "reg_token", "pos_embed")),
        layer_norm(f"{here}.norm{{k}}"),
        linear(f"{here}.attn.qkv"),
        linear(f"{here}.attn.proj"),
        linear(f"{here}.mlp.fc{{k}}"),
        Rule(f"{here}.{scale}", f"{here}.ls{{k}}.scale"),
        layer_norm("norm"),
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
            f"{error}: a comparison of a vision transformer with PyTorch needs timm; "
            "pip install --no-deps timm"
        ) from error
    return timm


def _reference(plan: Architecture, options: ViTOptions) -> Any:
    """The network of timm without its classifier, which returns its features by name."""
    import torch

    chosen = plan.blocks(options)
    settings = {} if plan.is_rotary else {"img_size": plan.grid * plan.patch}
    network = import_timm().create_model(
        plan.name,
        embed_dim=plan.channels,
        depth=chosen[-1],
        num_heads=plan.heads,
        num_classes=0,
        global_pool="token",
        dynamic_img_size=True,
        drop_path_rate=options.drop_path_rate,
        **settings,
    )
    if not options.normalize:
        network.norm = torch.nn.Identity()

    class Reference(type(network)):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            height, width = (side // plan.patch * plan.patch for side in x.shape[-2:])
            maps = self.forward_intermediates(
                x[..., :height, :width],
                indices=[number - 1 for number in chosen],
                return_prefix_tokens=True,
                norm=True,
                intermediates_only=True,
            )
            return {
                f"block{number}": self._feature(*found)
                for number, found in zip(chosen, maps, strict=True)
            }

        def _feature(self, patches: Any, others: Any) -> Any:
            if not options.class_token:
                return patches
            token = others[:, 0, :, None, None].expand(patches.shape)
            return torch.cat([patches, token], 1)

    network.__class__ = Reference
    return network
