"""DeepLabv3 and DeepLabv3+: heads with atrous spatial pyramid pooling for fcn-jax, and torchvision's whole models."""

from fcn_jax_deeplab.aspp import ASPP
from fcn_jax_deeplab.deeplabv3 import (
    DEEPLABV3,
    DEEPLABV3_MOBILENET_V3_LARGE,
    DEEPLABV3_RESNET50,
    DEEPLABV3_RESNET101,
    DeepLabV3Head,
    DeepLabV3Options,
)
from fcn_jax_deeplab.deeplabv3plus import DEEPLABV3PLUS, DeepLabV3PlusHead, DeepLabV3PlusOptions

__all__ = [
    "ASPP",
    "DEEPLABV3",
    "DEEPLABV3PLUS",
    "DEEPLABV3_MOBILENET_V3_LARGE",
    "DEEPLABV3_RESNET50",
    "DEEPLABV3_RESNET101",
    "DeepLabV3Head",
    "DeepLabV3Options",
    "DeepLabV3PlusHead",
    "DeepLabV3PlusOptions",
]
