"""DeepLabv3's head as torchvision has it, and torchvision's whole models.

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

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, Head, Model, ModelSpec, TorchBridge, Weights, require_no_offset
from fcn_jax.pytorch import Table, conv, conv_norm, import_torchvision, segmentation_reference
from fcn_jax_deeplab.aspp import ASPP, RATES, aspp_table, check_options, rates_at


@dataclasses.dataclass(frozen=True)
class DeepLabV3Options:
    """Options of `deeplabv3`.

    Attributes:
        rates: dilations of the 3x3 convolutions side by side, each at least 1. None takes 12, 24
            and 36 for a feature of stride 8, half of that for one of stride 16, and so on.
            torchvision takes 12, 24 and 36 at every stride.
        channels: of each branch and of what follows, at least 1. Published weights need 256.
        dropout: share of the projected values that training sets to zero, at least 0 and below 1.
    """

    rates: tuple[int, ...] | None = None
    channels: int = 256
    dropout: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_options(self.rates, self.dropout, channels=self.channels)


class DeepLabV3Head(nnx.Module):
    """ASPP of the deepest feature, 3x3 convolution, 1x1 convolution to the classes; then resized.

    Attributes:
        aspp: C -> `channels`.
        conv1: 3x3, with batch normalization and ReLU.
        conv2: 1x1, `channels` -> K, with bias.
    """

    def __init__(
        self,
        feature: FeatureSpec,
        num_classes: int,
        options: DeepLabV3Options,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters from PyTorch's defaults, as torchvision does."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        channels = options.channels
        self.feature = feature.name
        rates = rates_at(feature.stride, options.rates)
        self.aspp = ASPP(feature.channels, channels, rates, options.dropout, **types)
        self.conv1 = nn.ConvNormAct(channels, channels, 3, **types)
        self.conv2 = nn.Conv(channels, num_classes, 1, **types)

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        logits = self.conv2(self.conv1(self.aspp(features[self.feature])))
        return nn.resize_bilinear(logits, out_hw)


def _select(options: DeepLabV3Options, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    require_no_offset("deeplabv3", features[-1:])
    return (features[-1].name,)


def _build(
    options: DeepLabV3Options,
    features: Sequence[FeatureSpec],
    *,
    num_classes: int,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> DeepLabV3Head:
    return DeepLabV3Head(
        features[-1], num_classes, options, dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )


def _tables(options: DeepLabV3Options) -> dict[str, Table]:
    aspp = aspp_table(len(options.rates or RATES)).under("0.", "aspp.")
    return {
        "torchvision": aspp + Table(conv_norm("1", "2", "conv1"), conv("4", "conv2", bias=True))
    }


def _torch_reference(
    options: DeepLabV3Options, features: Sequence[FeatureSpec], num_classes: int
) -> Any:
    """DeepLabHead of torchvision; its 256 channels are fixed, so that for other numbers its layers are replaced by ones like them."""
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
    summary="torchvision's DeepLabHead: atrous spatial pyramid pooling of the deepest feature, resized bilinearly",
    reference="Chen et al. 2017, arXiv:1706.05587; torchvision/models/segmentation/deeplabv3.py",
    options=DeepLabV3Options,
    select=_select,
    build=_build,
    torch=TorchBridge(tables=_tables, reference=_torch_reference),
    maskable=True,
)


# --------------------------------------------------------------------------------------------------------------------- whole models


def _whole(
    name: str, summary: str, file: str, scores: str, backbone: str, **settings: Any
) -> Model:
    """Describe one of torchvision's models.

    Args:
        name: of the function in `torchvision.models.segmentation`.
        summary: what it is built from.
        file: that its weights are published in, with the leading digits of its SHA-256.
        scores: published.
        backbone: registered name.
        settings: other fields of the spec.
    """
    weights = Weights(
        f"https://download.pytorch.org/models/{file}.pth",
        file.rpartition("-")[2],
        f"COCO train2017 images with the 20 VOC classes; on COCO val2017 {scores}, images resized to 520",
    )
    return Model(
        name=name,
        summary=f"torchvision's DeepLabv3 on {summary} with its auxiliary head, 21 classes",
        reference=f"torchvision.models.segmentation.{name}",
        spec=ModelSpec(backbone, "deeplabv3", 21, aux_head="fcn", **settings),
        reference_model=functools.partial(segmentation_reference, name),
        weights={"COCO_WITH_VOC_LABELS_V1": weights},
    )


DEEPLABV3_RESNET50 = _whole(
    "deeplabv3_resnet50",
    "a dilated ResNet-50 (output stride 8)",
    "deeplabv3_resnet50_coco-cd0a2569",
    "mIoU 66.4, pixel accuracy 92.4",
    backbone="resnet50",
    output_stride=8,
)
DEEPLABV3_RESNET101 = _whole(
    "deeplabv3_resnet101",
    "a dilated ResNet-101 (output stride 8)",
    "deeplabv3_resnet101_coco-586e9e4e",
    "mIoU 67.4, pixel accuracy 92.4",
    backbone="resnet101",
    output_stride=8,
)
DEEPLABV3_MOBILENET_V3_LARGE = _whole(
    "deeplabv3_mobilenet_v3_large",
    "a dilated MobileNetV3-Large (output stride 16)",
    "deeplabv3_mobilenet_v3_large-fc3c493d",
    "mIoU 60.3, pixel accuracy 91.2",
    # By its full name: the distribution need not be installed, and where it is not, the error names
    # it.
    backbone="fcn-jax-mobilenet:mobilenet_v3_large",
    output_stride=16,
    head_options={"rates": list(RATES)},
    aux_feature="c2",
)
