"""MobileNetV2 and MobileNetV3 as backbones for fcn-jax, and LR-ASPP, the head that was designed for them."""

from fcn_jax_mobilenet.lraspp import LRASPP, LRASPP_MOBILENET_V3_LARGE, LRASPPHead, LRASPPOptions
from fcn_jax_mobilenet.mobilenet import (
    MOBILENET_V2,
    MOBILENET_V3_LARGE,
    MOBILENET_V3_SMALL,
    MobileNet,
    MobileNetV2Options,
    MobileNetV3Options,
)

__all__ = [
    "LRASPP",
    "LRASPP_MOBILENET_V3_LARGE",
    "MOBILENET_V2",
    "MOBILENET_V3_LARGE",
    "MOBILENET_V3_SMALL",
    "LRASPPHead",
    "LRASPPOptions",
    "MobileNet",
    "MobileNetV2Options",
    "MobileNetV3Options",
]
