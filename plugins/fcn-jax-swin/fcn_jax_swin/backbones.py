"""The backbones Swin-T, S, B and L, by timm's names."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from fcn_jax.api import Backbone, Weights
from fcn_jax_swin.architecture import Architecture
from fcn_jax_swin.bridge import bridge
from fcn_jax_swin.network import Swin


@dataclasses.dataclass(frozen=True)
class SwinOptions:
    """Options of all Swin transformers.

    Attributes:
        always_partition: shift the windows of the last stage, too. timm does not, because it is
            one window at the training size of 224 pixels. The authors' code for segmentation does.
        drop_path_rate: stochastic depth in training: the probability to leave out a branch rises
            from 0 in the first block to this rate in the last. The authors fine-tuned with 0.3.
    """

    always_partition: bool = False
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0


_MILLIONS = {"tiny": 27.5, "small": 48.8, "base": 86.7, "large": 195.0}
"""Parameters without the classifier, in millions."""

_TAGS = {"ms_in22k_ft_in1k": "ImageNet-22k, then ImageNet-1k", "ms_in22k": "ImageNet-22k"}
_OWN = {"ms_in1k": "ImageNet-1k"}


def _backbone(size: str) -> Backbone:
    plan = Architecture.of(size)
    data = _TAGS if size == "large" else _TAGS | _OWN
    weights = {
        f"timm/{plan.name}.{tag}": Weights.huggingface(
            f"timm/{plan.name}.{tag}", summary, license="mit"
        )
        for tag, summary in data.items()
    }
    return Backbone(
        name=plan.name,
        summary=f"Swin-{size[0].upper()}; strides 4 to 32, {plan.width} to {8 * plan.width} "
        f"channels, {_MILLIONS[size]} M parameters",
        reference=f"Liu et al. 2021, arXiv:2103.14030; timm {plan.name}",
        options=SwinOptions,
        output_strides=(32,),
        features=lambda options, output_stride: plan.specs,
        build=lambda options, **settings: Swin(plan, **dataclasses.asdict(options), **settings),
        torch=bridge(plan, weights),
    )


SWIN_TINY = _backbone("tiny")
SWIN_SMALL = _backbone("small")
SWIN_BASE = _backbone("base")
SWIN_LARGE = _backbone("large")
