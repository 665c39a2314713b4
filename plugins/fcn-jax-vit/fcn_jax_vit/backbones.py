"""The backbones, by timm's names: ViT, DINOv2 with and without registers, DINOv3."""

from __future__ import annotations

from fcn_jax.api import Backbone, Preprocess, Weights
from fcn_jax_vit.architecture import Architecture, ViTOptions
from fcn_jax_vit.bridge import bridge
from fcn_jax_vit.network import ViT

_MILLIONS = {
    "vit": {"tiny": 5.5, "small": 21.7, "base": 85.8, "large": 303.3},
    "dinov2": {"small": 22.1, "base": 86.6, "large": 304.4},
    "dinov2_reg": {"small": 22.1, "base": 86.6, "large": 304.4},
    "dinov3": {"small": 21.6, "base": 85.6, "large": 303.1},
}
"""Parameters without the classifier, in millions."""

_TITLES = {
    "vit": "ViT-{}/16",
    "dinov2": "DINOv2 ViT-{}/14",
    "dinov2_reg": "DINOv2 ViT-{}/14 with 4 registers",
    "dinov3": "DINOv3 ViT-{}/16",
}

_PAPERS = {
    "vit": "Dosovitskiy et al. 2020, arXiv:2010.11929",
    "dinov2": "Oquab et al. 2023, arXiv:2304.07193",
    "dinov2_reg": "Darcet et al. 2023, arXiv:2309.16588",
    "dinov3": "Siméoni et al. 2025, arXiv:2508.10104",
}

_TAGS = {
    "vit": ("augreg_in21k_ft_in1k", "augreg_in21k"),
    "dinov2": ("lvd142m",),
    "dinov2_reg": ("lvd142m",),
    "dinov3": ("lvd1689m",),
}
"""Published weights in timm's repositories, whose preprocessing is the backbone's."""

_DATA = {
    "augreg_in21k_ft_in1k": "ImageNet-21k, then ImageNet-1k",
    "augreg_in21k": "ImageNet-21k",
    "lvd142m": "142 million images without labels",
    "lvd1689m": "1689 million images without labels",
}


def _weights(plan: Architecture) -> dict[str, Weights]:
    license, restricted = "apache-2.0", ""
    if plan.family == "dinov3":
        license = "dinov3-license"
        restricted = "Meta's own terms, ai.meta.com/resources/models-and-libraries/dinov3-license"
    names = {f"timm/{plan.name}.{tag}": _DATA[tag] for tag in _TAGS[plan.family]}
    return {
        name: Weights.huggingface(name, data, license=license, restricted=restricted)
        for name, data in names.items()
    }


def _backbone(family: str, size: str) -> Backbone:
    plan = Architecture.of(family, size)
    half = Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3)
    return Backbone(
        name=plan.name,
        summary=f"{_TITLES[family].format(size[0].upper())}; stride {plan.patch}, "
        f"{plan.channels} channels, {_MILLIONS[family][size]} M parameters",
        reference=f"{_PAPERS[family]}; timm {plan.name}",
        options=ViTOptions,
        output_strides=(plan.patch,),
        features=lambda options, output_stride: plan.specs(options),
        build=lambda options, **settings: ViT(plan, options, **settings),
        preprocess=half if family == "vit" else Preprocess(),
        torch=bridge(plan, _weights(plan)),
    )


VIT_TINY = _backbone("vit", "tiny")
VIT_SMALL = _backbone("vit", "small")
VIT_BASE = _backbone("vit", "base")
VIT_LARGE = _backbone("vit", "large")
DINOV2_SMALL = _backbone("dinov2", "small")
DINOV2_BASE = _backbone("dinov2", "base")
DINOV2_LARGE = _backbone("dinov2", "large")
DINOV2_REG_SMALL = _backbone("dinov2_reg", "small")
DINOV2_REG_BASE = _backbone("dinov2_reg", "base")
DINOV2_REG_LARGE = _backbone("dinov2_reg", "large")
DINOV3_SMALL = _backbone("dinov3", "small")
DINOV3_BASE = _backbone("dinov3", "base")
DINOV3_LARGE = _backbone("dinov3", "large")
