"""MobileNetV2 and MobileNetV3 of torchvision, as backbones of output stride 32, 16 or 8.

Sandler et al. 2018, arXiv:1801.04381; Howard et al. 2019, arXiv:1905.02244;
`torchvision/models/mobilenetv2.py` and `mobilenetv3.py`. Submodules have torchvision's names. For
output strides 16 and 8, the last one or two stages are dilated instead of strided, so that weights
fit at every output stride:

* MobileNetV3 as with torchvision's `dilated=True`, which is output stride 16: all depthwise
  convolutions of such a stage, including the first, have its dilation. Output stride 8 dilates the
  stage before in the same way.
* MobileNetV2, which torchvision does not dilate, as its ResNets with
  `replace_stride_with_dilation`: the depthwise convolution that loses its stride keeps the dilation
  of the stage before, and those after it have the new one. The dilated network then computes the
  strided one at more positions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import PositiveFloat

from fcn_jax import nn
from fcn_jax.api import Backbone, FeatureSpec, Weights, ceil_size
from fcn_jax.pytorch import Rule
from fcn_jax_mobilenet.blocks import Activation, Block, InvertedResidual, Norm, conv_layer
from fcn_jax_mobilenet.bridge import bridge, v2_features, v2_rules, v3_features, v3_rules


@dataclasses.dataclass(frozen=True)
class MobileNetV2Options:
    """Options of MobileNetV2.

    Attributes:
        width_mult: factor of all channels. Published weights need 1.
    """

    width_mult: PositiveFloat = 1.0


@dataclasses.dataclass(frozen=True)
class MobileNetV3Options(MobileNetV2Options):
    """Options of MobileNetV3.

    Attributes:
        width_mult: factor of all channels. Published weights need 1.
        reduced_tail: whether the last stage has half as many channels, as in the paper's
            segmentation networks. torchvision has no weights for it.
    """

    reduced_tail: bool = False


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The dimensions of a MobileNet.

    Attributes:
        blocks: the inverted residuals, between a 3x3 convolution of stride 2 and a 1x1 convolution.
        last_channels: channels of the last convolution.
        activation: activation of the first and the last convolution.
        norm: settings of batch normalization.
        first_dilates: whether a depthwise convolution that loses its stride has the new dilation,
            or the previous one.
    """

    blocks: tuple[Block, ...]
    last_channels: int
    activation: Activation
    norm: Norm
    first_dilates: bool

    @property
    def stages(self) -> tuple[int, ...]:
        """Positions of the layers that are features: torchvision's `stage_indices`, C0 to C5.

        They are the first layer, the blocks with a stride, and the last layer.
        """
        strided = (i for i, block in enumerate(self.blocks, start=1) if block.stride > 1)
        return (0, *strided, len(self.blocks) + 1)

    def at(self, output_stride: int) -> tuple[Block, ...]:
        """The blocks for an output stride. Strides beyond it become dilations."""
        found = []
        reached, dilation = 2, 1
        for block in self.blocks:
            before, stride = dilation, block.stride
            if reached * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reached *= stride
            own = before if block.stride > 1 and not self.first_dilates else dilation
            found.append(dataclasses.replace(block, stride=stride, dilation=own))
        return tuple(found)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, at least `divisor` and 0.9 times `channels`."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


# (expansion, channels, number of blocks, stride of the first of them), table 2 of the paper.
_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(options: MobileNetV2Options) -> Architecture:
    """MobileNetV2's dimensions."""
    width = options.width_mult
    in_channels, blocks = make_divisible(32 * width), []
    for expansion, base, depth, stride in _V2:
        channels = make_divisible(base * width)
        for i in range(depth):
            own_stride = stride if i == 0 else 1
            residual = own_stride == 1 and in_channels == channels
            wide, relu6 = in_channels * expansion, jax.nn.relu6
            blocks.append(Block(in_channels, wide, channels, 3, own_stride, relu6, residual))
            in_channels = channels
    return Architecture(
        tuple(blocks),
        make_divisible(1280 * max(1.0, width)),
        jax.nn.relu6,
        Norm(),
        first_dilates=False,
    )


_RE, _HS = nnx.relu, jax.nn.hard_swish

# (kernel, expanded channels, channels, squeeze and excitation, activation, stride) of each block,
# tables 1 and 2 of the paper.
_V3_LARGE = (
    (3, 16, 16, False, _RE, 1),
    (3, 64, 24, False, _RE, 2),
    (3, 72, 24, False, _RE, 1),
    (5, 72, 40, True, _RE, 2),
    (5, 120, 40, True, _RE, 1),
    (5, 120, 40, True, _RE, 1),
    (3, 240, 80, False, _HS, 2),
    (3, 200, 80, False, _HS, 1),
    (3, 184, 80, False, _HS, 1),
    (3, 184, 80, False, _HS, 1),
    (3, 480, 112, True, _HS, 1),
    (3, 672, 112, True, _HS, 1),
    (5, 672, 160, True, _HS, 2),
    (5, 960, 160, True, _HS, 1),
    (5, 960, 160, True, _HS, 1),
)
_V3_SMALL = (
    (3, 16, 16, True, _RE, 2),
    (3, 72, 24, False, _RE, 2),
    (3, 88, 24, False, _RE, 1),
    (5, 96, 40, True, _HS, 2),
    (5, 240, 40, True, _HS, 1),
    (5, 240, 40, True, _HS, 1),
    (5, 120, 48, True, _HS, 1),
    (5, 144, 48, True, _HS, 1),
    (5, 288, 96, True, _HS, 2),
    (5, 576, 96, True, _HS, 1),
    (5, 576, 96, True, _HS, 1),
)


def mobilenet_v3(table: tuple[tuple[Any, ...], ...], options: MobileNetV3Options) -> Architecture:
    """The dimensions of a MobileNetV3 with the blocks in `table`."""
    last_stage = max(i for i, row in enumerate(table) if row[-1] > 1)
    tail = 2 if options.reduced_tail else 1
    in_channels, blocks = make_divisible(16 * options.width_mult), []
    for i, (kernel, expanded, channels, squeezes, activation, stride) in enumerate(table):
        # The reduced tail begins with the output of the last stage's first block.
        wide = make_divisible(expanded // (tail if i > last_stage else 1) * options.width_mult)
        out = make_divisible(channels // (tail if i >= last_stage else 1) * options.width_mult)
        squeezed = make_divisible(wide // 4) if squeezes else 0
        residual = stride == 1 and in_channels == out
        blocks.append(Block(in_channels, wide, out, kernel, stride, activation, residual, squeezed))
        in_channels = out
    return Architecture(
        tuple(blocks),
        6 * in_channels,
        jax.nn.hard_swish,
        Norm(eps=1e-3, momentum=0.01),
        first_dilates=True,
    )


class MobileNet(nnx.Module):
    """A 3x3 convolution of stride 2, inverted residuals, a 1x1 convolution; without the classifier.

    Attributes:
        features: these layers, in order.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        output_stride: int = 32,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters. Their shapes do not depend on the output stride: 32, 16 or 8."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        blocks, norm = architecture.at(output_stride), architecture.norm
        conv = functools.partial(conv_layer(norm, **types), activation=architecture.activation)
        self.features = nnx.List(
            [
                conv(3, blocks[0].in_channels, 3, stride=2),
                *(InvertedResidual(block, norm, **types) for block in blocks),
                conv(blocks[-1].channels, architecture.last_channels, 1),
            ]
        )
        self.stages = nnx.static(architecture.stages)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> features "c0" to "c5".

        They are f[N, ceil(H / s), ceil(W / s), C], with s = 2, 4, 8, 16, 32, 32 or the output
        stride.
        """
        features: dict[str, jax.Array] = {}
        for position, layer in enumerate(self.features):
            x = nn.call_block(layer, x)
            if position in self.stages:
                features[f"c{len(features)}"] = x
        return features


def _features(architecture: Architecture, output_stride: int) -> tuple[FeatureSpec, ...]:
    blocks = architecture.at(output_stride)
    strides, channels = [2], [blocks[0].in_channels]
    for block in blocks:
        strides.append(strides[-1] * block.stride)
        channels.append(block.channels)
    strides.append(strides[-1])
    channels.append(architecture.last_channels)
    return tuple(
        FeatureSpec(f"c{number}", channels[i], strides[i], ceil_size(strides[i]))
        for number, i in enumerate(architecture.stages)
    )


def _backbone(
    name: str,
    title: str,
    architecture: Callable[[Any], Architecture],
    rules: list[Rule],
    torch_features: Callable[[Any, int], Any],
    *,
    options: type,
    paper: str,
    millions: float,
    weights: Mapping[str, tuple[str, float]],
) -> Backbone:
    """The descriptor of a MobileNet.

    Args:
        name: name of the function in `torchvision.models`, and in the names of the weight files.
        title: name for readers.
        architecture: options -> its dimensions.
        rules: see `bridge`.
        torch_features: see `bridge`.
        options: type of its options.
        paper: where it was published.
        millions: number of parameters without the classifier, in millions.
        weights: by torchvision's name: the digits in the file's name, and the top-1 accuracy on
            ImageNet in percent.
    """
    files = {
        key: Weights.torchvision(f"{name}-{digits}", f"ImageNet-1k, top-1 accuracy {accuracy}")
        for key, (digits, accuracy) in weights.items()
    }
    specs = _features(architecture(options()), 32)
    return Backbone(
        name=name,
        summary=f"{title} of torchvision; strides 2 to 32, 16 or 8, {specs[0].channels} to "
        f"{specs[-1].channels} channels, {millions} M parameters",
        reference=f"{paper}; torchvision.models.{name}",
        options=options,
        output_strides=(32, 16, 8),
        features=lambda options, output_stride: _features(architecture(options), output_stride),
        build=lambda options, **settings: MobileNet(architecture(options), **settings),
        torch=bridge(rules, torch_features, files),
    )


def _v3_backbone(size: str, table: tuple[tuple[Any, ...], ...], **settings: Any) -> Backbone:
    name = f"mobilenet_v3_{size}"
    return _backbone(
        name,
        f"MobileNetV3-{size.capitalize()}",
        functools.partial(mobilenet_v3, table),
        v3_rules(),
        functools.partial(v3_features, name),
        options=MobileNetV3Options,
        paper="Howard et al. 2019, arXiv:1905.02244",
        **settings,
    )


MOBILENET_V2 = _backbone(
    "mobilenet_v2",
    "MobileNetV2",
    mobilenet_v2,
    v2_rules(),
    v2_features,
    options=MobileNetV2Options,
    paper="Sandler et al. 2018, arXiv:1801.04381",
    millions=2.2,
    weights={"IMAGENET1K_V1": ("b0353104", 71.878), "IMAGENET1K_V2": ("7ebf99e0", 72.154)},
)
MOBILENET_V3_SMALL = _v3_backbone(
    "small", _V3_SMALL, millions=0.9, weights={"IMAGENET1K_V1": ("047dcff4", 67.668)}
)
MOBILENET_V3_LARGE = _v3_backbone(
    "large",
    _V3_LARGE,
    millions=3.0,
    weights={"IMAGENET1K_V1": ("8738ca79", 74.042), "IMAGENET1K_V2": ("5c1a4163", 75.274)},
)
