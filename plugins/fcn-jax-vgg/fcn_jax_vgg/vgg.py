"""VGG with its fully connected layers as convolutions, and the trunk of the paper's networks.

Simonyan and Zisserman 2014, arXiv:1409.1556, configurations A, B, D and E, as
`torchvision/models/vgg.py` has them; made fully convolutional as in Long, Shelhamer and Darrell
2015, arXiv:1411.4038.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax import nn
from fcn_jax.api import Backbone, FeatureSpec, Preprocess, TorchBridge, Weights
from fcn_jax.pytorch.rules import Rule, Table, conv, conv_norm, drop, linear_as_conv

_CHANNELS = (64, 128, 256, 512, 512)

PADDING = 100
"""By how much the paper's networks pad the image in their first layer, so that fc6, which pads nothing, fits even the smallest one."""


@dataclasses.dataclass(frozen=True)
class VGGOptions:
    """Options of every VGG.

    Attributes:
        width: channels of fc6 and fc7, at least 1. Published weights need 4096; fc6 then has 102.8
            M parameters.
        dropout: share of fc6's and of fc7's outputs set to 0 in train mode, at least 0 and less
            than 1.
    """

    width: int = 4096
    dropout: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.width < 1:
            raise ValueError(f"width is {self.width}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and less than 1")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What tells one VGG from another.

    Attributes:
        depths: number of 3x3 convolutions in each of the five blocks; a 2x2 max pool ends each.
        batch_norm: whether each is followed by a batch normalization.
        paper: as in the networks of Long et al.: the first layer pads by 100, pools round sizes up,
            and fc6 pads nothing. Otherwise the first layer pads by 1, pools round down, and fc6
            keeps pool5's size.
    """

    depths: tuple[int, int, int, int, int]
    batch_norm: bool = False
    paper: bool = False


_A, _B, _D, _E = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)


class VGG(nnx.Module):
    """3x3 convolutions in five blocks, then fc6 (7x7) and fc7 (1x1) as convolutions.

    fc6 pads by 3, so that its feature has pool5's size, H // 32 by W // 32. On an image of 224x224
    pool5 has 7x7 pixels, and fc6's window at the center, (3, 3), is exactly what torchvision
    flattens: there fc7 equals the activations of torchvision's classifier before its last layer. At
        every other position the same filters slide on, over zeros past the border.

    In the paper's form fc6 pads nothing. The image's own padding has made pool5 larger by as much.

    Attributes:
        conv1_1: 3x3 with bias, with batch normalization where the architecture has it. The others,
            up to `conv5_3` in VGG-16, are alike; the names are those of the paper's tables.
        fc6: 7x7, 512 -> `width`, with bias.
        fc7: 1x1, `width` -> `width`, with bias.
        dropout6: after fc6; holds its own random stream.
        dropout7: after fc7.
    """

    def __init__(
        self,
        architecture: Architecture,
        options: VGGOptions,
        *,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters as torchvision does: He et al.'s normal for 3x3, deviation 0.01 for fc6 and fc7, bias 0."""
        settings: dict[str, Any] = {
            "bias_init": nnx.initializers.zeros_init(),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        layer = nn.Conv
        if architecture.batch_norm:
            layer = functools.partial(nn.ConvNormAct, use_bias=True, activation=None)
        self.architecture = nnx.static(architecture)
        in_channels, padding = 3, PADDING if architecture.paper else 1
        for block, depth in enumerate(architecture.depths, start=1):
            out_channels = _CHANNELS[block - 1]
            for i in range(1, depth + 1):
                conv = layer(
                    in_channels,
                    out_channels,
                    3,
                    padding=padding,
                    kernel_init=nn.kaiming_normal_fan_out,
                    **settings,
                )
                setattr(self, f"conv{block}_{i}", conv)
                in_channels, padding = out_channels, 1
        settings["kernel_init"] = nn.normal(0.01)
        padding = 0 if architecture.paper else 3
        self.fc6 = nn.Conv(in_channels, options.width, 7, padding=padding, **settings)
        self.fc7 = nn.Conv(options.width, options.width, 1, **settings)
        self.dropout6 = nnx.Dropout(options.dropout, rngs=rngs)
        self.dropout7 = nnx.Dropout(options.dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> `pool1` to `pool5`, `fc7`: f[N, h, w, C], as the descriptor's `features` says."""
        features = {}
        for block, depth in enumerate(self.architecture.depths, start=1):
            for i in range(1, depth + 1):
                x = nnx.relu(getattr(self, f"conv{block}_{i}")(x))
            x = nn.max_pool(x, 2, 2, ceil_mode=self.architecture.paper)
            features[f"pool{block}"] = x
        x = self.dropout6(nnx.relu(self.fc6(x)))
        features["fc7"] = self.dropout7(nnx.relu(self.fc7(x)))
        return features


@functools.cache  # so that the specs of two equal networks are equal
def _size(stride: int, paper: bool, less: int = 0) -> Callable[[int], int]:
    """Length in pixels -> a pool's of that stride, `less` pixels taken off by an unpadded layer after it."""
    if paper:  # rounding up again and again is rounding up once
        return lambda length: -(-(length + 2 * (PADDING - 1)) // stride) - less
    return lambda length: length // stride - less


def _features(
    architecture: Architecture, options: VGGOptions, output_stride: int
) -> tuple[FeatureSpec, ...]:
    paper = architecture.paper
    offset = PADDING - 1 if paper else 0  # a 3x3 convolution that keeps the size pads by 1
    pools = [
        FeatureSpec(f"pool{block}", channels, 2**block, _size(2**block, paper), offset)
        for block, channels in enumerate(_CHANNELS, start=1)
    ]
    less = 6 if paper else 0  # of 7x7 without padding, half of it at the top and left
    return (
        *pools,
        FeatureSpec("fc7", options.width, 32, _size(32, paper, less), offset - less // 2 * 32),
    )


def _tables(architecture: Architecture, options: VGGOptions) -> dict[str, Table]:
    # torchvision counts convolutions, batch normalizations, ReLUs and pools in one Sequential:
    # features.0, 2, 5, 7, 10 ...
    rules: list[Rule] = []
    flat: list[Rule] = []
    position = 0
    for block, depth in enumerate(architecture.depths, start=1):
        for i in range(1, depth + 1):
            ours, theirs, norm = (
                f"conv{block}_{i}",
                f"features.{position}",
                f"features.{position + 1}",
            )
            if architecture.batch_norm:
                rules += conv_norm(theirs, norm, ours, bias=True)
            else:
                rules += conv(theirs, ours, bias=True)
            flat += conv(ours, bias=True)
            position += 3 if architecture.batch_norm else 2
        position += 1
    rules += linear_as_conv("classifier.0", "fc6", size=(7, 7))
    rules += linear_as_conv("classifier.3", "fc7", size=(1, 1))
    classifier = drop(
        "classifier.6.*",
        "the classifier of ImageNet's classes, which a segmentation network does not have",
    )
    tables = {"torchvision": Table(rules, classifier)}
    if architecture.paper:  # the names of the reimplementation wkentaro/pytorch-fcn, which are those of the authors' Caffe networks
        tables["pytorch-fcn"] = Table(flat, conv("fc6", bias=True), conv("fc7", bias=True))
    return tables


def _torch_reference(architecture: Architecture, options: VGGOptions, output_stride: int) -> Any:
    """The network in torchvision's class, with its names, that gives the features by name when called."""
    from fcn_jax.pytorch.reference import import_torchvision

    torchvision = import_torchvision()
    import torch

    class Reference(torchvision.models.VGG):  # type: ignore[name-defined]
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            features: dict[str, torch.Tensor] = {}
            for layer in self.features:
                x = layer(x)
                if isinstance(layer, torch.nn.MaxPool2d):
                    features[f"pool{len(features) + 1}"] = x
            for position, shape in ((0, (-1, 512, 7, 7)), (3, (-1, options.width, 1, 1))):
                linear, relu, dropout = self.classifier[position : position + 3]
                weight, padding = (
                    linear.weight.reshape(shape),
                    0 if architecture.paper else shape[-1] // 2,
                )
                x = dropout(
                    relu(torch.nn.functional.conv2d(x, weight, linear.bias, padding=padding))
                )
            return {**features, "fc7": x}

    layout: list[int | str] = []
    for depth, channels in zip(architecture.depths, _CHANNELS, strict=True):
        layout += [*[channels] * depth, "M"]
    features = torchvision.models.vgg.make_layers(layout, batch_norm=architecture.batch_norm)
    if architecture.paper:
        features[0].padding = (PADDING, PADDING)
        for layer in features:
            if isinstance(layer, torch.nn.MaxPool2d):
                layer.ceil_mode = True
    with torch.device("meta"):  # the classifier is made anew below, in its own width
        reference = Reference(torch.nn.Sequential(), init_weights=False, dropout=options.dropout)
    reference.features = features
    reference.classifier[0] = torch.nn.Linear(512 * 7 * 7, options.width)
    reference.classifier[3] = torch.nn.Linear(options.width, options.width)
    reference.classifier[6] = torch.nn.Linear(options.width, 1000)
    return reference


_PAPER = "Simonyan and Zisserman 2014, arXiv:1409.1556; Long et al. 2015, arXiv:1411.4038"


def _backbone(
    name: str,
    summary: str,
    architecture: Architecture,
    *,
    original: str,
    weights: dict[str, Weights] | None = None,
    preprocess: Preprocess | None = None,
) -> Backbone:
    """Describe a VGG; `original` names what it follows, besides the papers."""

    def build(
        options: VGGOptions,
        *,
        output_stride: int,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> VGG:
        return VGG(architecture, options, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    return Backbone(
        name=name,
        summary=summary,
        reference=f"{_PAPER}; {original}",
        options=VGGOptions,
        features=functools.partial(_features, architecture),
        build=build,
        preprocess=preprocess or Preprocess(),
        maskable=True,
        torch=TorchBridge(
            tables=functools.partial(_tables, architecture),
            reference=functools.partial(_torch_reference, architecture),
            weights=weights or {},
        ),
    )


def _torchvisions(
    name: str,
    depths: tuple[int, int, int, int, int],
    *,
    millions: float,
    digits: str,
    accuracy: float,
) -> Backbone:
    """A VGG of torchvision's.

    Args:
        name: of the function in `torchvision.models`, and in the names of the weight files.
        depths: number of convolutions in each block.
        millions: of parameters, the classifier's last layer left out.
        digits: in the weight file's name, the first of its SHA-256.
        accuracy: top-1 on ImageNet in percent.
    """
    normalized = name.endswith("_bn")
    number = name.removeprefix("vgg").removesuffix("_bn")
    return _backbone(
        name,
        f"VGG-{number}{' with batch normalization' if normalized else ''}, torchvision's, with fc6 and fc7 as convolutions; strides 2 "
        f"to 32, 64 to 4096 channels, {millions} M parameters",
        Architecture(depths, batch_norm=normalized),
        original=f"torchvision.models.{name}",
        weights={
            "IMAGENET1K_V1": Weights(
                f"https://download.pytorch.org/models/{name}-{digits}.pth",
                digits,
                f"ImageNet-1k, top-1 accuracy {accuracy}",
            )
        },
    )


VGG11 = _torchvisions("vgg11", _A, millions=128.8, digits="8a719046", accuracy=69.02)
VGG13 = _torchvisions("vgg13", _B, millions=129.0, digits="19584684", accuracy=69.928)
VGG16 = _torchvisions("vgg16", _D, millions=134.3, digits="397923af", accuracy=71.592)
VGG19 = _torchvisions("vgg19", _E, millions=139.6, digits="dcbb9e9d", accuracy=72.376)
VGG11_BN = _torchvisions("vgg11_bn", _A, millions=128.8, digits="6002323d", accuracy=70.37)
VGG13_BN = _torchvisions("vgg13_bn", _B, millions=129.0, digits="abd245e5", accuracy=71.586)
VGG16_BN = _torchvisions("vgg16_bn", _D, millions=134.3, digits="6c64b313", accuracy=73.36)
VGG19_BN = _torchvisions("vgg19_bn", _E, millions=139.6, digits="c79401a0", accuracy=74.218)

VGG16_CAFFE = _backbone(
    "vgg16_caffe",
    "VGG-16 as the paper's networks have it: the image padded by 100, fc6 without padding, BGR from 0 to 255; 134.3 M parameters",
    Architecture(_D, paper=True),
    original="shelhamer/fcn.berkeleyvision.org; wkentaro/pytorch-fcn",
    preprocess=Preprocess(
        mean=(104.00698793, 116.66876762, 122.67891434),
        std=(1.0, 1.0, 1.0),
        scale=255.0,
        channel_order="bgr",
    ),
)
