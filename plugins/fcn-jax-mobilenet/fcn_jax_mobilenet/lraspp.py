"""LR-ASPP, the light head of MobileNetV3, over any backbone; and torchvision's whole model of the two.

Howard et al. 2019, arXiv:1905.02244, section 6.4; `torchvision/models/segmentation/lraspp.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax import nn
from fcn_jax.api import (
    FeatureSpec,
    Head,
    Model,
    ModelSpec,
    TorchBridge,
    Weights,
    require_no_offset,
)
from fcn_jax.errors import ConfigError
from fcn_jax.pytorch import Table, conv, conv_norm, import_torchvision, segmentation_reference

LOW_STRIDE = 8
"""Stride of the shallow feature, where the deepest one's is larger."""


@dataclasses.dataclass(frozen=True)
class LRASPPOptions:
    """Options of `lraspp`.

    Attributes:
        inter_channels: channels that the deepest feature is brought to, at least 1. Published
            weights need 128.
    """

    inter_channels: int = 128

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.inter_channels < 1:
            raise ValueError(f"inter_channels is {self.inter_channels}; it must be at least 1")


class LRASPPHead(nnx.Module):
    """Scores of the deepest feature, weighted by what the whole image shows, and of a shallower one; added at the latter's size.

    Attributes:
        cbr: 1x1 convolution of the deepest feature, batch normalization, ReLU.
        scale: 1x1 convolution without bias of the deepest feature's means over the image; a sigmoid
            makes factors of them.
        low_classifier: 1x1, with bias, of the shallow feature.
        high_classifier: 1x1, with bias, of the deep one.
    """

    def __init__(
        self,
        low: FeatureSpec,
        high: FeatureSpec,
        num_classes: int,
        inter_channels: int,
        *,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters from PyTorch's defaults, as torchvision does."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.low, self.high = low.name, high.name
        self.cbr = nn.ConvNormAct(high.channels, inter_channels, 1, **types)
        self.scale = nn.Conv(high.channels, inter_channels, 1, use_bias=False, **types)
        self.low_classifier = nn.Conv(low.channels, num_classes, 1, **types)
        self.high_classifier = nn.Conv(inter_channels, num_classes, 1, **types)

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        low, high = features[self.low], features[self.high]
        x = self.cbr(high) * jax.nn.sigmoid(self.scale(nn.global_average_pool(high)))
        x = nn.resize_bilinear(x, (low.shape[1], low.shape[2]))
        return nn.resize_bilinear(self.low_classifier(low) + self.high_classifier(x), out_hw)


def _low(features: Sequence[FeatureSpec]) -> FeatureSpec:
    """The shallow feature: of stride 8 or, where the deepest is no coarser than that, of half its stride; of several the deepest.

    Raises:
        ConfigError: there is none, or they do not begin where the image does.
    """
    deepest = features[-1]
    offered = ", ".join(f"{feature.name} ({feature.stride})" for feature in features)
    by_stride = {feature.stride: feature for feature in features}
    stride = LOW_STRIDE if deepest.stride > LOW_STRIDE else deepest.stride / 2
    if stride not in by_stride:
        raise ConfigError(
            f"head 'lraspp' needs a feature of stride {stride:g} beside the deepest, of stride {deepest.stride}; the backbone offers "
            f"{offered}. Take another output stride or head"
        )
    low = by_stride[int(stride)]
    require_no_offset("lraspp", (low, deepest))
    return low


def _select(options: LRASPPOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    return (_low(features).name, features[-1].name)


def _build(
    options: LRASPPOptions,
    features: Sequence[FeatureSpec],
    *,
    num_classes: int,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> LRASPPHead:
    low, high = features
    return LRASPPHead(
        low,
        high,
        num_classes,
        options.inter_channels,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def _tables(options: LRASPPOptions) -> dict[str, Table]:
    table = Table(
        conv_norm("cbr.0", "cbr.1", "cbr"),
        conv("scale.1", "scale"),
        conv("low_classifier", bias=True),
        conv("high_classifier", bias=True),
    )
    return {"torchvision": table}


def _torch_reference(
    options: LRASPPOptions, features: Sequence[FeatureSpec], num_classes: int
) -> Any:
    """The head of torchvision, given the two features in order in place of a dict."""

    class Reference(import_torchvision().models.segmentation.lraspp.LRASPPHead):  # type: ignore[misc]
        def forward(self, low: Any, high: Any) -> Any:
            return super().forward({"low": low, "high": high})

    low, high = features
    return Reference(low.channels, high.channels, num_classes, options.inter_channels)


LRASPP = Head(
    name="lraspp",
    summary="torchvision's LRASPPHead: the deepest feature, weighted by its means over the image, and one of stride 8",
    reference="Howard et al. 2019, arXiv:1905.02244; torchvision/models/segmentation/lraspp.py",
    options=LRASPPOptions,
    select=_select,
    build=_build,
    torch=TorchBridge(tables=_tables, reference=_torch_reference),
    maskable=True,
)


LRASPP_MOBILENET_V3_LARGE = Model(
    name="lraspp_mobilenet_v3_large",
    summary="torchvision's LR-ASPP on a dilated MobileNetV3-Large (output stride 16), 21 classes, 3.2 M parameters",
    reference="torchvision.models.segmentation.lraspp_mobilenet_v3_large",
    spec=ModelSpec("mobilenet_v3_large", "lraspp", 21, output_stride=16),
    reference_model=functools.partial(segmentation_reference, "lraspp_mobilenet_v3_large"),
    weights={
        "COCO_WITH_VOC_LABELS_V1": Weights(
            "https://download.pytorch.org/models/lraspp_mobilenet_v3_large-d234d4ea.pth",
            "d234d4ea",
            "COCO train2017 images with the 20 VOC classes; on COCO val2017 mIoU 57.9, pixel accuracy 91.2, images resized to 520",
        )
    },
)
