"""DINOv2's linear head: batch normalization and a 1x1 convolution, on a frozen backbone.

Oquab et al. 2023, arXiv:2304.07193, section 7.4; `BNHead` of facebookresearch/dinov2
(`dinov2/eval/segmentation/models/decode_heads/linear_head.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from fcn_jax_smp_heads import parts
from flax import nnx
from pydantic import PositiveInt

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, Head, TorchBridge
from fcn_jax.errors import ConfigError
from fcn_jax.pytorch import Table, batch_norm, conv, import_torchvision


@dataclasses.dataclass(frozen=True)
class LinearOptions:
    """Options of `linear`.

    Attributes:
        features: number of the deepest features that are concatenated. DINOv2 has 1 ("linear") or
            4 ("+ms").
    """

    features: PositiveInt = 1


class LinearHead(nnx.Module):
    """Batch normalization and a 1x1 convolution of features; the logits are resized.

    Several features are resized to the size of the shallowest of them.

    Attributes:
        bn: of the concatenated features.
        conv_seg: 1x1, C -> K, with bias.
    """

    def __init__(
        self,
        options: LinearOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        **types: Any,
    ) -> None:
        """Draw the kernel from a normal distribution of deviation 0.01; the bias is 0."""
        self.names = nnx.static(tuple(feature.name for feature in features))
        channels = sum(feature.channels for feature in features)
        dtypes = {name: value for name, value in types.items() if name != "rngs"}
        self.bn = nn.BatchNorm(channels, **dtypes)
        init = {**parts.INIT, "kernel_init": nn.normal(0.01)}
        self.conv_seg = nn.Conv(channels, num_classes, 1, **init, **types)

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        taken = [features[name] for name in self.names]
        x = parts.join(*(parts.resize_like(feature, taken[0]) for feature in taken))
        return nn.resize_bilinear(self.conv_seg(self.bn(x)), out_hw)


def _select(options: LinearOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    if len(features) < options.features:
        offered = ", ".join(f"{feature.name} ({feature.stride})" for feature in features)
        raise ConfigError(
            f"head 'linear' takes the {options.features} deepest features, but the backbone offers "
            f"only {offered}; set its option features to {len(features)} or less"
        )
    return tuple(feature.name for feature in features[-options.features :])


def _reference(options: LinearOptions, features: Sequence[FeatureSpec], num_classes: int) -> Any:
    """`BNHead` in plain PyTorch: its own class needs mmsegmentation."""
    import_torchvision()
    from torch import cat, nn
    from torch.nn.functional import interpolate

    channels = sum(feature.channels for feature in features)

    class Reference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(channels)
            self.conv_seg = nn.Conv2d(channels, num_classes, 1)

        def forward(self, *maps: Any) -> Any:
            size = maps[0].shape[2:]
            resized = [interpolate(x, size=size, mode="bilinear") for x in maps]
            return self.conv_seg(self.bn(cat(resized, dim=1)))

    return Reference()


LINEAR = Head(
    name="linear",
    summary="DINOv2's linear head: batch normalization and a 1x1 convolution of the deepest "
    "feature",
    reference="Oquab et al. 2023, arXiv:2304.07193; facebookresearch/dinov2 linear_head.py",
    options=LinearOptions,
    select=_select,
    build=LinearHead,
    torch=TorchBridge(
        tables=Table(batch_norm("bn"), conv("conv_seg", bias=True)), reference=_reference
    ),
)
