"""torchvision's FCN head: two convolutions on the deepest feature, resized bilinearly.

`torchvision/models/segmentation/fcn.py` (FCNHead) and `_utils.py`; after Long et al. 2015,
arXiv:1411.4038.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from pydantic import Field

from fcn_jax import nn
from fcn_jax.plugins.api import FeatureSpec, Head, Model, ModelSpec, TorchBridge, Weights
from fcn_jax.pytorch import Table, conv, conv_norm, import_torchvision, segmentation_reference


@dataclasses.dataclass(frozen=True)
class FCNOptions:
    """Options of `fcn`.

    Attributes:
        dropout: fraction of the values between the convolutions that is set to 0 in train mode,
            0 <= dropout < 1.
    """

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class FCNHead(nnx.Module):
    """3x3 convolution, dropout, 1x1 convolution to the classes; the logits are resized.

    Attributes:
        conv1: 3x3, C -> C / 4, with batch normalization and ReLU.
        conv2: 1x1, C / 4 -> K, with bias.
    """

    def __init__(
        self,
        options: FCNOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters from PyTorch's defaults, as torchvision does."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        feature = features[-1]
        inner = feature.channels // 4
        self.feature = feature.name
        self.conv1 = nn.ConvNormAct(feature.channels, inner, 3, **types)
        self.dropout = nnx.Dropout(options.dropout, rngs=rngs)
        self.conv2 = nn.Conv(inner, num_classes, 1, **types)

    def __call__(
        self, features: Mapping[str, Float[Array, "N _ _ _"]], *, out_hw: tuple[int, int]
    ) -> Float[Array, "N {out_hw[0]} {out_hw[1]} K"]:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        logits = self.conv2(self.dropout(self.conv1(features[self.feature])))
        return nn.resize_bilinear(logits, out_hw)


def _torch_reference(options: FCNOptions, features: Sequence[FeatureSpec], num_classes: int) -> Any:
    head = import_torchvision().models.segmentation.fcn.FCNHead(features[-1].channels, num_classes)
    head[3].p = options.dropout
    return head


FCN = Head(
    name="fcn",
    summary="FCNHead of torchvision: 3x3 and 1x1 convolution of the deepest feature, resized "
    "bilinearly",
    reference="torchvision/models/segmentation/fcn.py",
    options=FCNOptions,
    build=FCNHead,
    torch=TorchBridge(
        tables=Table(conv_norm("0", "1", "conv1"), conv("4", "conv2", bias=True)),
        reference=_torch_reference,
    ),
)


def _model(backbone: str, digits: str, scores: str) -> Model:
    name = f"fcn_{backbone}"
    return Model(
        name=name,
        summary=f"FCN of torchvision on a dilated {backbone} (output stride 8) with its auxiliary "
        "head, 21 classes",
        reference=f"torchvision.models.segmentation.{name}",
        spec=ModelSpec(backbone, "fcn", 21, output_stride=8, aux_head="fcn"),
        reference_model=functools.partial(segmentation_reference, name),
        weights={
            "COCO_WITH_VOC_LABELS_V1": Weights.torchvision(
                f"{name}_coco-{digits}",
                f"COCO train2017 images with the 20 VOC classes; on COCO val2017 {scores}, images "
                "resized to 520",
            )
        },
    )


FCN_RESNET50 = _model("resnet50", "1167a1af", "mIoU 60.5, pixel accuracy 91.4")
FCN_RESNET101 = _model("resnet101", "7ecb50ca", "mIoU 63.7, pixel accuracy 91.9")
