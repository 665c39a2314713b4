"""The backbones, by timm's names: ConvNeXt, and ConvNeXt V2, which begin with `convnextv2_`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from fcn_jax.api import Backbone, Weights
from fcn_jax_convnext.architecture import Architecture
from fcn_jax_convnext.bridge import bridge
from fcn_jax_convnext.network import ConvNeXt


@dataclasses.dataclass(frozen=True)
class ConvNeXtOptions:
    """Options of all ConvNeXts.

    Attributes:
        drop_path_rate: stochastic depth in training: the probability to leave out a block rises
            from 0 at the first block to this rate at the last. The authors fine-tuned for
            segmentation with 0.4 (tiny, base, large) and 0.3 (small).
    """

    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0


_MILLIONS = {
    "convnext_atto": 3.4,
    "convnext_femto": 4.8,
    "convnext_pico": 8.5,
    "convnext_nano": 15.0,
    "convnext_tiny": 27.8,
    "convnext_small": 49.5,
    "convnext_base": 87.6,
    "convnext_large": 196.2,
    "convnext_xlarge": 348.1,
    "convnextv2_atto": 3.4,
    "convnextv2_femto": 4.8,
    "convnextv2_pico": 8.6,
    "convnextv2_nano": 15.0,
    "convnextv2_tiny": 27.9,
    "convnextv2_small": 49.5,
    "convnextv2_base": 87.7,
    "convnextv2_large": 196.4,
    "convnextv2_huge": 657.5,
}
"""Parameters without the classifier, in millions."""

_FACEBOOK = ("fb_in22k_ft_in1k", "fb_in22k")
_TAGS = {
    "convnext_atto": ("d2_in1k",),
    "convnext_femto": ("d1_in1k",),
    "convnext_pico": ("d1_in1k",),
    "convnext_nano": ("in12k_ft_in1k", "in12k", "d1h_in1k"),
    "convnext_tiny": ("in12k_ft_in1k", "in12k", *_FACEBOOK, "fb_in1k", "dinov3_lvd1689m"),
    "convnext_small": ("in12k_ft_in1k", "in12k", *_FACEBOOK, "fb_in1k", "dinov3_lvd1689m"),
    "convnext_base": (*_FACEBOOK, "fb_in1k", "dinov3_lvd1689m"),
    "convnext_large": (*_FACEBOOK, "fb_in1k", "dinov3_lvd1689m"),
    "convnext_xlarge": _FACEBOOK,
    "convnextv2_atto": ("fcmae_ft_in1k",),
    "convnextv2_femto": ("fcmae_ft_in1k",),
    "convnextv2_pico": ("fcmae_ft_in1k",),
    "convnextv2_nano": ("fcmae_ft_in22k_in1k", "fcmae_ft_in1k"),
    "convnextv2_tiny": ("fcmae_ft_in22k_in1k", "fcmae_ft_in1k"),
    "convnextv2_base": ("fcmae_ft_in22k_in1k", "fcmae_ft_in1k"),
    "convnextv2_large": ("fcmae_ft_in22k_in1k", "fcmae_ft_in1k"),
    "convnextv2_huge": ("fcmae_ft_in1k",),
}
"""Published weights in timm's repositories, whose preprocessing is the backbone's."""

_DATA = {
    "in22k": "ImageNet-22k",
    "in12k": "ImageNet-12k",
    "in1k": "ImageNet-1k",
    "lvd1689m": "1689 million images without labels",
}


def _weights(name: str) -> dict[str, Weights]:
    found = {}
    for tag in _TAGS.get(name, ()):
        license, restricted = "apache-2.0", ""
        if name.startswith("convnextv2"):
            license, restricted = "cc-by-nc-4.0", "no commercial use"
        elif tag.startswith("dinov3"):
            license = "dinov3-license"
            restricted = (
                "Meta's own terms, ai.meta.com/resources/models-and-libraries/dinov3-license"
            )
        data = [text for part, text in _DATA.items() if part in tag.split("_")]
        repository = f"timm/{name}.{tag}"
        found[repository] = Weights.huggingface(
            repository, ", then ".join(data), license=license, restricted=restricted
        )
    return found


def _backbone(version: int, size: str) -> Backbone:
    plan = Architecture.of(version, size)
    return Backbone(
        name=plan.name,
        summary=f"ConvNeXt{' V2' * (version == 2)}-{size.capitalize()}; strides 4 to 32, 16 or 8, "
        f"{plan.channels[0]} to {plan.channels[-1]} channels, {_MILLIONS[plan.name]} M parameters",
        reference=(
            "Liu et al. 2022, arXiv:2201.03545"
            if version == 1
            else "Woo et al. 2023, arXiv:2301.00808"
        )
        + f"; timm {plan.name}",
        options=ConvNeXtOptions,
        output_strides=(32, 16, 8),
        features=lambda options, output_stride: plan.specs(output_stride),
        build=lambda options, **settings: ConvNeXt(
            plan, drop_path_rate=options.drop_path_rate, **settings
        ),
        torch=bridge(plan, _weights(plan.name)),
    )


CONVNEXT_ATTO = _backbone(1, "atto")
CONVNEXT_FEMTO = _backbone(1, "femto")
CONVNEXT_PICO = _backbone(1, "pico")
CONVNEXT_NANO = _backbone(1, "nano")
CONVNEXT_TINY = _backbone(1, "tiny")
CONVNEXT_SMALL = _backbone(1, "small")
CONVNEXT_BASE = _backbone(1, "base")
CONVNEXT_LARGE = _backbone(1, "large")
CONVNEXT_XLARGE = _backbone(1, "xlarge")
CONVNEXTV2_ATTO = _backbone(2, "atto")
CONVNEXTV2_FEMTO = _backbone(2, "femto")
CONVNEXTV2_PICO = _backbone(2, "pico")
CONVNEXTV2_NANO = _backbone(2, "nano")
CONVNEXTV2_TINY = _backbone(2, "tiny")
CONVNEXTV2_SMALL = _backbone(2, "small")
CONVNEXTV2_BASE = _backbone(2, "base")
CONVNEXTV2_LARGE = _backbone(2, "large")
CONVNEXTV2_HUGE = _backbone(2, "huge")
