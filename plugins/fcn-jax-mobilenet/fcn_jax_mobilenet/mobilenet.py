"""MobileNetV2 and MobileNetV3 as torchvision defines them, as trunks for segmentation at output strides 32, 16 and 8.

Sandler et al. 2018, arXiv:1801.04381; Howard et al. 2019, arXiv:1905.02244;
`torchvision/models/mobilenetv2.py` and `mobilenetv3.py`. Submodules carry torchvision's names. For
output strides 16 and 8 the last one or two stages dilate instead of striding, so that weights fit
at every output stride:

* MobileNetV3 as torchvision's `dilated=True`, which is output stride 16: all depthwise convolutions
  of such a stage, the first one too, have its dilation. Output stride 8 dilates the stage before in
  the same way.
* MobileNetV2, which torchvision does not dilate, as its ResNets with
  `replace_stride_with_dilation`: the depthwise convolution that loses its stride keeps the dilation
      of the stage before, and those after it take the new one. The dilated network then computes
      what the
  strided one does, at more places.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.api import Backbone, FeatureSpec, TorchBridge, Weights, ceil_size
from fcn_jax_mobilenet.blocks import Activation, Block, InvertedResidual, Norm, conv_layer
from fcn_jax_mobilenet.bridge import bridge, v2_features, v2_rules, v3_features, v3_rules


@dataclasses.dataclass(frozen=True)
class MobileNetV2Options:
    """Options of MobileNetV2.

    Attributes:
        width_mult: factor on the channels, above 0. Published weights need 1.
    """

    width_mult: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not self.width_mult > 0:
            raise ValueError(f"width_mult is {self.width_mult}; it must be above 0")


@dataclasses.dataclass(frozen=True)
class MobileNetV3Options(MobileNetV2Options):
    """Options of MobileNetV3.

    Attributes:
        width_mult: factor on the channels, above 0. Published weights need 1.
        reduced_tail: half as many channels in the last stage, as in the paper's networks for
            segmentation. torchvision has no weights for it.
    """

    reduced_tail: bool = False


# -------------------------------------------------------------------------------------------------------------------- architectures


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network's dimensions, before it is dilated.

    Attributes:
        blocks: the inverted residuals, between a 3x3 convolution of stride 2 and a 1x1 convolution.
        last_channels: channels of the last convolution.
        activation: of the first and the last convolution.
        norm: settings of batch normalization.
        first_dilates: whether a depthwise convolution that loses its stride takes the new dilation,
            or keeps the one before.
    """

    blocks: tuple[Block, ...]
    last_channels: int
    activation: Activation
    norm: Norm
    first_dilates: bool

    @property
    def stages(self) -> tuple[int, ...]:
        """Positions of the layers that are features: torchvision's `stage_indices`, C0 to C5.

        They are the first layer of all, the blocks that have a stride, and the last layer.
        """
        strided = (i for i, block in enumerate(self.blocks, start=1) if block.stride > 1)
        return (0, *strided, len(self.blocks) + 1)

    def at(self, output_stride: int) -> tuple[Block, ...]:
        """The blocks for an output stride: a stride that would lead past it becomes a dilation."""
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
    """The nearest multiple of `divisor`, at least that, and no less than nine tenths of `channels`."""
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
            blocks.append(
                Block(
                    in_channels,
                    in_channels * expansion,
                    channels,
                    3,
                    own_stride,
                    jax.nn.relu6,
                    residual,
                )
            )
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
    """The dimensions of a MobileNetV3 whose blocks `table` lists."""
    last_stage = max(i for i, row in enumerate(table) if row[-1] > 1)
    tail = 2 if options.reduced_tail else 1
    in_channels, blocks = make_divisible(16 * options.width_mult), []
    for i, (kernel, expanded, channels, squeezes, activation, stride) in enumerate(table):
        # The reduced tail begins with what the last stage's first block puts out.
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


# --------------------------------------------------------------------------------------------------------------------------- network


class MobileNet(nnx.Module):
    """A 3x3 convolution of stride 2, inverted residuals, a 1x1 convolution; without the classifier.

    Attributes:
        features: these layers, in order.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        output_stride: int,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters, whose shapes do not depend on the output stride: 32, 16 or 8."""
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
        """f[N, H, W, 3] -> `c0` to `c5`: f[N, ceil(H / s), ceil(W / s), C], s = 2, 4, 8, 16, 32, 32 or less."""
        features: dict[str, jax.Array] = {}
        for position, layer in enumerate(self.features):
            x = layer(x)
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


# ---------------------------------------------------------------------------------------------------------------------- descriptors


def _backbone(
    name: str,
    title: str,
    architecture: Callable[[Any], Architecture],
    torch: TorchBridge,
    *,
    options: type,
    paper: str,
    millions: float,
) -> Backbone:
    """Describe a MobileNet by torchvision's name for it.

    Args:
        name: of the function in `torchvision.models`.
        title: as people write it.
        architecture: options -> its dimensions.
        torch: bridge to torchvision's.
        options: type of its options.
        paper: that it comes from.
        millions: of parameters, the classifier's left out.
    """

    def build(
        options: Any,
        *,
        output_stride: int,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> MobileNet:
        return MobileNet(
            architecture(options),
            output_stride=output_stride,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    specs = _features(architecture(options()), 32)
    return Backbone(
        name=name,
        summary=f"{title}, torchvision's; strides 2 to 32, 16 or 8, {specs[0].channels} to {specs[-1].channels} channels, "
        f"{millions} M parameters",
        reference=f"{paper}; torchvision.models.{name}",
        options=options,
        output_strides=(32, 16, 8),
        features=lambda options, output_stride: _features(architecture(options), output_stride),
        build=build,
        maskable=True,
        torch=torch,
    )


def _weights(name: str, published: Mapping[str, tuple[str, float]]) -> dict[str, Weights]:
    """From torchvision's name for weights -> digits in the file's name, top-1 accuracy on ImageNet in percent."""
    return {
        key: Weights(
            f"https://download.pytorch.org/models/{name}-{digits}.pth",
            digits,
            f"ImageNet-1k, top-1 accuracy {accuracy}",
        )
        for key, (digits, accuracy) in published.items()
    }


def _v3_backbone(
    size: str,
    table: tuple[tuple[Any, ...], ...],
    millions: float,
    published: Mapping[str, tuple[str, float]],
) -> Backbone:
    name = f"mobilenet_v3_{size}"
    return _backbone(
        name,
        f"MobileNetV3-{size.capitalize()}",
        functools.partial(mobilenet_v3, table),
        bridge(v3_rules(), functools.partial(v3_features, name), _weights(name, published)),
        options=MobileNetV3Options,
        paper="Howard et al. 2019, arXiv:1905.02244",
        millions=millions,
    )


MOBILENET_V2 = _backbone(
    "mobilenet_v2",
    "MobileNetV2",
    mobilenet_v2,
    bridge(
        v2_rules(),
        v2_features,
        _weights(
            "mobilenet_v2",
            {"IMAGENET1K_V1": ("b0353104", 71.878), "IMAGENET1K_V2": ("7ebf99e0", 72.154)},
        ),
    ),
    options=MobileNetV2Options,
    paper="Sandler et al. 2018, arXiv:1801.04381",
    millions=2.2,
)
MOBILENET_V3_SMALL = _v3_backbone("small", _V3_SMALL, 0.9, {"IMAGENET1K_V1": ("047dcff4", 67.668)})
MOBILENET_V3_LARGE = _v3_backbone(
    "large",
    _V3_LARGE,
    3.0,
    {"IMAGENET1K_V1": ("8738ca79", 74.042), "IMAGENET1K_V2": ("5c1a4163", 75.274)},
)
