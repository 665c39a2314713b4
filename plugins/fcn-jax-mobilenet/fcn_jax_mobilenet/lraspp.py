"""LR-ASPP, the light head of MobileNetV3, and the model of torchvision.

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
from pydantic import PositiveInt

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, Head, Model, ModelSpec, TorchBridge, Weights
from fcn_jax.errors import ConfigError
from fcn_jax.pytorch import Table, conv, conv_norm, import_torchvision, segmentation_reference

LOW_STRIDE = 8
"""Stride of the shallow feature, if the deepest one has a larger stride."""


@dataclasses.dataclass(frozen=True)
class LRASPPOptions:
    """Options of `lraspp`.

    Attributes:
        inter_channels: channels to which the deepest feature is projected. Published weights need
            128.
    """

    inter_channels: PositiveInt = 128


class LRASPPHead(nnx.Module):
    """Scores of the deepest feature, weighted by its means, plus scores of a shallower feature.

    They are added at the size of the shallower feature, and the sum is resized to the image's size.

    Attributes:
        cbr: 1x1 convolution of the deepest feature, batch normalization, ReLU.
        scale: 1x1 convolution, without bias, of the deepest feature's means over the image. A
            sigmoid turns its output into factors.
        low_classifier: 1x1, with bias, of the shallow feature.
        high_classifier: 1x1, with bias, of the deep one.
    """

    def __init__(
        self,
        options: LRASPPOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters from PyTorch's defaults, as torchvision does."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        (low, high), inner = features, options.inter_channels
        self.low, self.high = low.name, high.name
        self.cbr = nn.ConvNormAct(high.channels, inner, 1, **types)
        self.scale = nn.Conv(high.channels, inner, 1, use_bias=False, **types)
        self.low_classifier = nn.Conv(low.channels, num_classes, 1, **types)
        self.high_classifier = nn.Conv(inner, num_classes, 1, **types)

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        low, high = features[self.low], features[self.high]
        x = self.cbr(high) * jax.nn.sigmoid(self.scale(nn.global_average_pool(high)))
        x = nn.resize_bilinear(x, (low.shape[1], low.shape[2]))
        return nn.resize_bilinear(self.low_classifier(low) + self.high_classifier(x), out_hw)


def _select(options: LRASPPOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    """A feature of stride 8, or of half the deepest stride if that is smaller, and the deepest."""
    deepest = features[-1]
    by_stride = {feature.stride: feature.name for feature in features}
    stride = LOW_STRIDE if deepest.stride > LOW_STRIDE else deepest.stride / 2
    if stride not in by_stride:
        offered = ", ".join(f"{feature.name} ({feature.stride})" for feature in features)
        raise ConfigError(
            f"head 'lraspp' needs a feature of stride {stride:g} in addition to the deepest, of "
            f"stride {deepest.stride}; the backbone offers {offered}. Use another output stride or "
            "head"
        )
    return (by_stride[int(stride)], deepest.name)


def _torch_reference(
    options: LRASPPOptions, features: Sequence[FeatureSpec], num_classes: int
) -> Any:
    """Torchvision's head, called with two features instead of a dict."""

    class Reference(import_torchvision().models.segmentation.lraspp.LRASPPHead):  # type: ignore[misc]
        def forward(self, low: Any, high: Any) -> Any:
            return super().forward({"low": low, "high": high})

    low, high = features
    return Reference(low.channels, high.channels, num_classes, options.inter_channels)


LRASPP = Head(
    name="lraspp",
    summary="LRASPPHead of torchvision: the deepest feature, weighted by its means over the image, "
    "and one of stride 8",
    reference="Howard et al. 2019, arXiv:1905.02244; torchvision/models/segmentation/lraspp.py",
    options=LRASPPOptions,
    select=_select,
    build=LRASPPHead,
    torch=TorchBridge(
        tables=Table(
            conv_norm("cbr.0", "cbr.1", "cbr"),
            conv("scale.1", "scale"),
            conv("low_classifier", bias=True),
            conv("high_classifier", bias=True),
        ),
        reference=_torch_reference,
    ),
)

LRASPP_MOBILENET_V3_LARGE = Model(
    name="lraspp_mobilenet_v3_large",
    summary="LR-ASPP of torchvision on a dilated MobileNetV3-Large (output stride 16), 21 classes, "
    "3.2 M parameters",
    reference="torchvision.models.segmentation.lraspp_mobilenet_v3_large",
    spec=ModelSpec("mobilenet_v3_large", "lraspp", 21, output_stride=16),
    reference_model=functools.partial(segmentation_reference, "lraspp_mobilenet_v3_large"),
    weights={
        "COCO_WITH_VOC_LABELS_V1": Weights.torchvision(
            "lraspp_mobilenet_v3_large-d234d4ea",
            "COCO train2017 images with the 20 VOC classes; on COCO val2017 mIoU 57.9, pixel "
            "accuracy 91.2, images resized to 520",
        )
    },
)
