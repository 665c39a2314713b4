"""The backbones MiT-B0 to B5, by the names of segmentation-models-pytorch."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from fcn_jax.api import Backbone, Weights
from fcn_jax_mit.architecture import Architecture
from fcn_jax_mit.bridge import bridge
from fcn_jax_mit.network import MixTransformer


@dataclasses.dataclass(frozen=True)
class MixTransformerOptions:
    """Options of all mix transformers.

    Attributes:
        drop_path_rate: stochastic depth in training: the probability to leave out a branch rises
            from 0 in the first block to this rate in the last. The authors trained with 0.1.
    """

    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0


_MILLIONS = {"b0": 3.3, "b1": 13.2, "b2": 24.2, "b3": 44.1, "b4": 60.8, "b5": 81.4}
"""Parameters without the classifier, in millions."""


def _backbone(size: str) -> Backbone:
    plan = Architecture.of(size)
    repository = f"smp-hub/{plan.name}.imagenet"
    weights = Weights.huggingface(
        repository,
        "ImageNet-1k",
        license="nvidia-source-code-license",
        restricted="research and evaluation only, no commercial use",
    )
    return Backbone(
        name=plan.name,
        summary=f"MiT-{size.upper()}, the encoder of SegFormer; strides 4 to 32, "
        f"{plan.channels[0]} to {plan.channels[-1]} channels, {_MILLIONS[size]} M parameters",
        reference=f"Xie et al. 2021, arXiv:2105.15203; segmentation-models-pytorch {plan.name}",
        options=MixTransformerOptions,
        output_strides=(32,),
        features=lambda options, output_stride: plan.specs,
        build=lambda options, **settings: MixTransformer(
            plan, drop_path_rate=options.drop_path_rate, **settings
        ),
        torch=bridge(plan, {repository: weights}),
    )


MIT_B0 = _backbone("b0")
MIT_B1 = _backbone("b1")
MIT_B2 = _backbone("b2")
MIT_B3 = _backbone("b3")
MIT_B4 = _backbone("b4")
MIT_B5 = _backbone("b5")
