"""VGG with its fully connected layers as convolutions, and the backbone of the paper's networks.

Simonyan and Zisserman 2014, arXiv:1409.1556, configurations A, B, D and E, as
`torchvision/models/vgg.py` has them; made fully convolutional as in Long, Shelhamer and Darrell
2015, arXiv:1411.4038.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field, PositiveInt

from fcn_jax import nn
from fcn_jax.api import (
    Backbone,
    FeatureSpec,
    Preprocess,
    TorchBridge,
    Weights,
    ceil_size,
    floor_size,
)
from fcn_jax.pytorch import Rule, Table, conv, conv_norm, drop, import_torchvision, linear_as_conv

_CHANNELS = (64, 128, 256, 512, 512)

PADDING = 100
"""Padding of the paper's first layer, so that fc6 fits even the smallest image."""


@dataclasses.dataclass(frozen=True)
class VGGOptions:
    """Options of every VGG.

    Attributes:
        width: channels of fc6 and fc7. Published weights need 4096; fc6 then has 102.8 M
            parameters.
        dropout: fraction of fc6's and fc7's outputs that is set to 0 in train mode.
    """

    width: PositiveInt = 4096
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The dimensions of a VGG.

    Attributes:
        depths: number of 3x3 convolutions in each of the five blocks; a 2x2 max pool ends each.
        batch_norm: whether batch normalization follows each convolution.
        paper: whether it is the network of Long et al.: the first layer pads by 100, pools round
            sizes up, and fc6 does not pad. Otherwise the first layer pads by 1, pools round down,
            and fc6 keeps pool5's size.
    """

    depths: tuple[int, int, int, int, int]
    batch_norm: bool = False
    paper: bool = False


_A, _B, _D, _E = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)


class VGG(nnx.Module):
    """3x3 convolutions in five blocks, then fc6 (7x7) and fc7 (1x1) as convolutions.

    fc6 pads by 3, so that its feature has pool5's size, H // 32 by W // 32. On an image of 224x224,
    pool5 has 7x7 pixels, and fc6's window at the center, (3, 3), is what torchvision flattens:
    there, fc7 equals the activations of torchvision's classifier before its last layer. At all
    other positions, the same filters see zeros beyond the border.

    In the paper's form, fc6 does not pad. The image's padding makes pool5 larger by as much.

    Attributes:
        conv1_1: 3x3 with bias, with batch normalization if the architecture has it. So are the
            others, up to `conv5_3` in VGG-16; the names are those of the paper's tables.
        fc6: 7x7, 512 -> `width`, with bias.
        fc7: 1x1, `width` -> `width`, with bias.
        dropout6: after fc6; `dropout7` after fc7.
    """

    def __init__(
        self,
        architecture: Architecture,
        options: VGGOptions,
        *,
        output_stride: int = 32,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters as torchvision does.

        He et al.'s normal for 3x3 convolutions, deviation 0.01 for fc6 and fc7, bias 0. The only
        output stride is 32.
        """
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        settings = {"bias_init": nnx.initializers.zeros_init(), **types}
        conv3x3: Callable[..., nnx.Module] = nn.Conv
        if architecture.batch_norm:
            conv3x3 = functools.partial(nn.ConvNormAct, use_bias=True, activation=None)
        layer = functools.partial(conv3x3, kernel_init=nn.kaiming_normal_fan_out, **settings)
        self.architecture = nnx.static(architecture)
        in_channels, padding = 3, PADDING if architecture.paper else 1
        for block, depth in enumerate(architecture.depths, start=1):
            out_channels = _CHANNELS[block - 1]
            for i in range(1, depth + 1):
                conv = layer(in_channels, out_channels, 3, padding=padding)
                setattr(self, f"conv{block}_{i}", conv)
                in_channels, padding = out_channels, 1
        settings["kernel_init"] = nn.normal(0.01)
        padding = 0 if architecture.paper else 3
        self.fc6 = nn.Conv(in_channels, options.width, 7, padding=padding, **settings)
        self.fc7 = nn.Conv(options.width, options.width, 1, **settings)
        self.dropout6 = nnx.Dropout(options.dropout, rngs=rngs)
        self.dropout7 = nnx.Dropout(options.dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> "pool1" to "pool5" and "fc7", f[N, h, w, C]; see the descriptor."""
        features = {}
        for block, depth in enumerate(self.architecture.depths, start=1):
            for i in range(1, depth + 1):
                x = nnx.relu(getattr(self, f"conv{block}_{i}")(x))
            x = nn.max_pool(x, 2, 2, ceil_mode=self.architecture.paper)
            features[f"pool{block}"] = x
        x = self.dropout6(nnx.relu(self.fc6(x)))
        features["fc7"] = self.dropout7(nnx.relu(self.fc7(x)))
        return features


@functools.cache
def _padded_size(stride: int, less: int = 0) -> Callable[[int], int]:
    """`FeatureSpec.size` in the paper's networks, less the pixels that fc6 takes off."""
    return lambda length: ceil_size(stride)(length + 2 * (PADDING - 1)) - less


def _features(
    architecture: Architecture, options: VGGOptions, output_stride: int
) -> tuple[FeatureSpec, ...]:
    paper = architecture.paper
    offset = PADDING - 1 if paper else 0  # a 3x3 convolution that keeps the size pads by 1
    size = _padded_size if paper else floor_size
    pools = [
        FeatureSpec(f"pool{block}", channels, 2**block, size(2**block), offset)
        for block, channels in enumerate(_CHANNELS, start=1)
    ]
    # fc6, 7x7 without padding, takes off 3 pixels on each side.
    fc7 = (_padded_size(32, 6), offset - 3 * 32) if paper else (size(32), 0)
    return (*pools, FeatureSpec("fc7", options.width, 32, *fc7))


def _tables(architecture: Architecture) -> dict[str, Table]:
    # torchvision counts convolutions, batch normalizations, ReLUs and pools in one Sequential:
    # features.0, 2, 5, 7, 10 ...
    rules, flat, position = list[Rule](), list[Rule](), 0
    for block, depth in enumerate(architecture.depths, start=1):
        for ours in (f"conv{block}_{i}" for i in range(1, depth + 1)):
            theirs, norm = f"features.{position}", f"features.{position + 1}"
            flat += conv(ours, bias=True)
            if architecture.batch_norm:
                rules += conv_norm(theirs, norm, ours, bias=True)
                position += 1
            else:
                rules += conv(theirs, ours, bias=True)
            position += 2
        position += 1
    rules += linear_as_conv("classifier.0", "fc6", size=(7, 7))
    rules += linear_as_conv("classifier.3", "fc7", size=(1, 1))
    classifier = "the ImageNet classifier, which a segmentation model does not have"
    tables = {"torchvision": Table(rules, drop("classifier.6.*", classifier))}
    if architecture.paper:  # the names of wkentaro/pytorch-fcn and of the authors' Caffe networks
        tables["pytorch-fcn"] = Table(flat, conv("fc6", bias=True), conv("fc7", bias=True))
    return tables


def _torch_reference(architecture: Architecture, options: VGGOptions, output_stride: int) -> Any:
    """Torchvision's class, with its names. It returns the features by name."""
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
                weight, padding = linear.weight.reshape(shape), shape[-1] // 2
                if architecture.paper:
                    padding = 0
                x = torch.nn.functional.conv2d(x, weight, linear.bias, padding=padding)
                x = dropout(relu(x))
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
    with torch.device("meta"):  # its classifier is replaced below
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
    follows: str,
    weights: dict[str, Weights] | None = None,
    preprocess: Preprocess = Preprocess(),  # noqa: B008, a frozen dataclass
) -> Backbone:
    """The descriptor of a VGG, which `follows` an implementation."""
    papers = "Simonyan and Zisserman 2014, arXiv:1409.1556; Long et al. 2015, arXiv:1411.4038"
    return Backbone(
        name=name,
        summary=summary,
        reference=f"{papers}; {follows}",
        options=VGGOptions,
        features=functools.partial(_features, architecture),
        build=functools.partial(VGG, architecture),
        preprocess=preprocess,
        torch=TorchBridge(
            tables=_tables(architecture),
            reference=functools.partial(_torch_reference, architecture),
            weights=weights or {},
        ),
    )


def _of_torchvision(
    name: str,
    depths: tuple[int, int, int, int, int],
    *,
    millions: float,
    digits: str,
    accuracy: float,
) -> Backbone:
    """The descriptor of a VGG of torchvision.

    `millions` of parameters are counted without the classifier's last layer; `digits` are in the
    weight file's name; `accuracy` is the top-1 accuracy on ImageNet in percent.
    """
    number, _, normalized = name.removeprefix("vgg").partition("_")
    return _backbone(
        name,
        f"VGG-{number}{' with batch normalization' if normalized else ''} of torchvision, with fc6 "
        f"and fc7 as convolutions; strides 2 to 32, 64 to 4096 channels, {millions} M parameters",
        Architecture(depths, batch_norm=bool(normalized)),
        f"torchvision.models.{name}",
        {
            "IMAGENET1K_V1": Weights.torchvision(
                f"{name}-{digits}", f"ImageNet-1k, top-1 accuracy {accuracy}"
            )
        },
    )


VGG11 = _of_torchvision("vgg11", _A, millions=128.8, digits="8a719046", accuracy=69.02)
VGG13 = _of_torchvision("vgg13", _B, millions=129.0, digits="19584684", accuracy=69.928)
VGG16 = _of_torchvision("vgg16", _D, millions=134.3, digits="397923af", accuracy=71.592)
VGG19 = _of_torchvision("vgg19", _E, millions=139.6, digits="dcbb9e9d", accuracy=72.376)
VGG11_BN = _of_torchvision("vgg11_bn", _A, millions=128.8, digits="6002323d", accuracy=70.37)
VGG13_BN = _of_torchvision("vgg13_bn", _B, millions=129.0, digits="abd245e5", accuracy=71.586)
VGG16_BN = _of_torchvision("vgg16_bn", _D, millions=134.3, digits="6c64b313", accuracy=73.36)
VGG19_BN = _of_torchvision("vgg19_bn", _E, millions=139.6, digits="c79401a0", accuracy=74.218)

VGG16_CAFFE = _backbone(
    "vgg16_caffe",
    "VGG-16 of the paper's networks: the image padded by 100, fc6 without padding, BGR from 0 to "
    "255; 134.3 M parameters",
    Architecture(_D, paper=True),
    "shelhamer/fcn.berkeleyvision.org; wkentaro/pytorch-fcn",
    preprocess=Preprocess(
        mean=(104.00698793, 116.66876762, 122.67891434),
        std=(1.0, 1.0, 1.0),
        scale=255.0,
        channel_order="bgr",
    ),
)
