"""The DeepLabv3 head and models of torchvision.

Chen et al. 2017, arXiv:1706.05587; `torchvision/models/segmentation/deeplabv3.py`.
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
from fcn_jax.pytorch import Table, conv, conv_norm, import_torchvision, segmentation_reference
from fcn_jax_deeplab.aspp import ASPP, RATES, Dropout, Rates, aspp_table, rates_at


@dataclasses.dataclass(frozen=True)
class DeepLabV3Options:
    """Options of `deeplabv3`.

    Attributes:
        rates: dilations of the parallel 3x3 convolutions, each at least 1. None means 12, 24 and 36
            for a feature of stride 8, half of that for stride 16, and so on. torchvision has 12, 24
            and 36 at every stride.
        channels: channels of each branch and of the layers after them. Published weights need 256.
        dropout: fraction of the projected values that is set to 0 in train mode.
    """

    rates: Rates | None = None
    channels: PositiveInt = 256
    dropout: Dropout = 0.5


class DeepLabV3Head(nnx.Module):
    """ASPP of the deepest feature, 3x3 convolution, 1x1 convolution to the classes; then resized.

    Attributes:
        aspp: C -> `channels`.
        conv1: 3x3, with batch normalization and ReLU.
        conv2: 1x1, `channels` -> K, with bias.
    """

    def __init__(
        self,
        options: DeepLabV3Options,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters from PyTorch's defaults, as torchvision does."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        feature, channels = features[-1], options.channels
        self.feature = feature.name
        rates = rates_at(feature.stride, options.rates)
        self.aspp = ASPP(feature.channels, channels, rates, options.dropout, **types)
        self.conv1 = nn.ConvNormAct(channels, channels, 3, **types)
        self.conv2 = nn.Conv(channels, num_classes, 1, **types)

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        logits = self.conv2(self.conv1(self.aspp(features[self.feature])))
        return nn.resize_bilinear(logits, out_hw)


def _table(options: DeepLabV3Options) -> Table:
    aspp = aspp_table(len(options.rates or RATES)).under("0.", "aspp.")
    return aspp + Table(conv_norm("1", "2", "conv1"), conv("4", "conv2", bias=True))


def _torch_reference(
    options: DeepLabV3Options, features: Sequence[FeatureSpec], num_classes: int
) -> Any:
    """Torchvision's DeepLabHead. Its 256 channels are fixed, so other numbers need new layers."""
    source = import_torchvision().models.segmentation.deeplabv3
    import torch

    feature, channels = features[-1], options.channels
    rates = rates_at(feature.stride, options.rates)
    head = source.DeepLabHead(feature.channels, num_classes, rates)
    if channels != 256:
        head[0] = source.ASPP(feature.channels, rates, channels)
        head[1] = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        head[2] = torch.nn.BatchNorm2d(channels)
        head[4] = torch.nn.Conv2d(channels, num_classes, 1)
    head[0].project[3].p = options.dropout
    return head


DEEPLABV3 = Head(
    name="deeplabv3",
    summary="DeepLabHead of torchvision: atrous spatial pyramid pooling of the deepest feature, "
    "resized bilinearly",
    reference="Chen et al. 2017, arXiv:1706.05587; torchvision/models/segmentation/deeplabv3.py",
    options=DeepLabV3Options,
    build=DeepLabV3Head,
    torch=TorchBridge(tables=_table, reference=_torch_reference),
)


def _model(
    name: str, on: str, digits: str, scores: str, backbone: str, output_stride: int, **settings: Any
) -> Model:
    """The descriptor of a model of torchvision.

    Args:
        name: name of the function in `torchvision.models.segmentation`.
        on: the backbone, for readers.
        digits: end of the name of the weights file.
        scores: published scores.
        backbone: registered name.
        output_stride: stride of its deepest feature.
        settings: other fields of the spec.
    """
    weights = Weights.torchvision(
        f"{name}_coco-{digits}" if "resnet" in name else f"{name}-{digits}",
        f"COCO train2017 images with the 20 VOC classes; on COCO val2017 {scores}, images resized "
        "to 520",
    )
    parts: dict[str, Any] = {"output_stride": output_stride, "aux_head": "fcn", **settings}
    return Model(
        name=name,
        summary=f"DeepLabv3 of torchvision on a dilated {on} (output stride {output_stride}) with "
        "its auxiliary head, 21 classes",
        reference=f"torchvision.models.segmentation.{name}",
        spec=ModelSpec(backbone, "deeplabv3", 21, **parts),
        reference_model=functools.partial(segmentation_reference, name),
        weights={"COCO_WITH_VOC_LABELS_V1": weights},
    )


DEEPLABV3_RESNET50 = _model(
    "deeplabv3_resnet50", "ResNet-50", "cd0a2569", "mIoU 66.4, pixel accuracy 92.4", "resnet50", 8
)
DEEPLABV3_RESNET101 = _model(
    "deeplabv3_resnet101",
    "ResNet-101",
    "586e9e4e",
    "mIoU 67.4, pixel accuracy 92.4",
    "resnet101",
    8,
)
DEEPLABV3_MOBILENET_V3_LARGE = _model(
    "deeplabv3_mobilenet_v3_large",
    "MobileNetV3-Large",
    "fc3c493d",
    "mIoU 60.3, pixel accuracy 91.2",
    # The full name, so that the error names the distribution if it is not installed.
    "fcn-jax-mobilenet:mobilenet_v3_large",
    16,
    head_options={"rates": list(RATES)},
    aux_feature="c2",
)
