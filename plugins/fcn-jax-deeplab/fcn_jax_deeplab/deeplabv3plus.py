"""DeepLabv3+: ASPP of the deepest feature, refined together with a feature of stride 4.

Chen et al. 2018, arXiv:1802.02611, with plain convolutions, as the paper has them on ResNet.
Structure and names are those of `DeepLabHeadV3Plus` in VainF/DeepLabV3Plus-Pytorch
(`network/_deeplab.py`). It refines by one 3x3 convolution; section 4.1 of the paper found that two
are best. `depth` is their number; with 1, its state dicts fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import PositiveInt

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, Head, TorchBridge
from fcn_jax.errors import ConfigError
from fcn_jax.pytorch import Table, conv, conv_norm, import_torchvision
from fcn_jax_deeplab.aspp import ASPP, RATES, Dropout, Rates, aspp_table, rates_at

LOW_STRIDE = 4
"""Stride of the shallow feature."""


@dataclasses.dataclass(frozen=True)
class DeepLabV3PlusOptions:
    """Options of `deeplabv3plus`.

    Attributes:
        rates: dilations of the parallel 3x3 convolutions, each at least 1. None means 12, 24 and 36
            for a deepest feature of stride 8, half of that for stride 16, and so on.
        channels: channels of ASPP and of the refining convolutions.
        low_channels: channels to which the feature of stride 4 is projected.
        depth: number of refining 3x3 convolutions.
        dropout: fraction of ASPP's values that is set to 0 in train mode.
    """

    rates: Rates | None = None
    channels: PositiveInt = 256
    low_channels: PositiveInt = 48
    depth: PositiveInt = 2
    dropout: Dropout = 0.1


class DeepLabV3PlusHead(nnx.Module):
    """ASPP, resized and concatenated with a shallow feature; 3x3 convolutions, 1x1 convolution.

    The logits are resized to the image's size.

    Attributes:
        project: 1x1 convolution of the feature of stride 4 to few channels, so that they do not
            outweigh ASPP's.
        aspp: of the deepest feature.
        decoder: the 3x3 convolutions.
        score: 1x1, `channels` -> K, with bias.
    """

    def __init__(
        self,
        options: DeepLabV3PlusOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the kernels from He et al.'s normal by fan-in, as the PyTorch code does."""
        settings: dict[str, Any] = {
            "kernel_init": nn.kaiming_normal_fan_in,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        (low, deepest), channels = features, options.channels
        self.low, self.deepest = low.name, deepest.name
        self.project = nn.ConvNormAct(low.channels, options.low_channels, 1, **settings)
        rates = rates_at(deepest.stride, options.rates)
        self.aspp = ASPP(deepest.channels, channels, rates, options.dropout, **settings)
        widths = [options.low_channels + channels, *[channels] * (options.depth - 1)]
        self.decoder = nnx.List(nn.ConvNormAct(width, channels, 3, **settings) for width in widths)
        self.score = nn.Conv(channels, num_classes, 1, **settings)

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        low = self.project(features[self.low])
        deep = nn.resize_bilinear(self.aspp(features[self.deepest]), (low.shape[1], low.shape[2]))
        y = jnp.concatenate([low, deep], axis=-1)
        for layer in self.decoder:
            y = layer(y)
        return nn.resize_bilinear(self.score(y), out_hw)


def _select(options: DeepLabV3PlusOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    deepest = features[-1]
    low = [feature for feature in features if feature.stride == LOW_STRIDE]
    if not low or deepest.stride <= LOW_STRIDE:
        offered = ", ".join(f"{feature.name} ({feature.stride})" for feature in features)
        raise ConfigError(
            f"head 'deeplabv3plus' needs a feature of stride {LOW_STRIDE} and a deeper one of "
            f"larger stride; the backbone offers {offered}. Use another output stride, or "
            "head 'deeplabv3'"
        )
    return (low[-1].name, deepest.name)


def _table(options: DeepLabV3PlusOptions) -> Table:
    # Convolution, normalization and ReLU, `depth` times, then the scores: one Sequential.
    rules = conv_norm("project.0", "project.1", "project")
    for i in range(options.depth):
        rules += conv_norm(f"classifier.{3 * i}", f"classifier.{3 * i + 1}", f"decoder.{i}")
    rules += conv(f"classifier.{3 * options.depth}", "score", bias=True)
    return Table(rules) + aspp_table(len(options.rates or RATES)).under("aspp.", "aspp.")


def _torch_reference(
    options: DeepLabV3PlusOptions, features: Sequence[FeatureSpec], num_classes: int
) -> Any:
    """The same head in plain PyTorch, over torchvision's ASPP."""
    source = import_torchvision().models.segmentation.deeplabv3
    from torch import cat, nn
    from torch.nn.functional import interpolate

    low, deepest = features

    def block(in_channels: int, out_channels: int, size: int) -> list[Any]:
        convolution = nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False)
        return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]

    class Reference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            channels = options.channels
            self.project = nn.Sequential(*block(low.channels, options.low_channels, 1))
            self.aspp = source.ASPP(
                deepest.channels, rates_at(deepest.stride, options.rates), channels
            )
            self.aspp.project[3].p = options.dropout
            layers = block(options.low_channels + channels, channels, 3)
            for _ in range(options.depth - 1):
                layers += block(channels, channels, 3)
            self.classifier = nn.Sequential(*layers, nn.Conv2d(channels, num_classes, 1))

        def forward(self, shallow: Any, deep: Any) -> Any:
            shallow = self.project(shallow)
            deep = interpolate(
                self.aspp(deep), size=shallow.shape[-2:], mode="bilinear", align_corners=False
            )
            return self.classifier(cat([shallow, deep], dim=1))

    return Reference()


DEEPLABV3PLUS = Head(
    name="deeplabv3plus",
    summary="DeepLabv3+: ASPP of the deepest feature, refined together with a feature of stride 4",
    reference="Chen et al. 2018, arXiv:1802.02611; VainF/DeepLabV3Plus-Pytorch _deeplab.py",
    options=DeepLabV3PlusOptions,
    select=_select,
    build=DeepLabV3PlusHead,
    torch=TorchBridge(tables=_table, reference=_torch_reference),
)
