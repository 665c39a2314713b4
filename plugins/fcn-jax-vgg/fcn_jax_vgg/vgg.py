"""VGG with its fully connected layers as convolutions, and the backbone of the paper's networks.

Simonyan and Zisserman 2014, arXiv:1409.1556, configurations A, B, D and E, as
`torchvision/models/vgg.py` has them; made fully convolutional as in Long, Shelhamer and Darrell
2015, arXiv:1411.4038.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
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


# The paper's configurations.
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
        settings: dict[str, Any] = {
            "bias_init": nnx.initializers.zeros_init(),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        conv3x3: Callable[..., nnx.Module] = nn.Conv
        if architecture.batch_norm:
            conv3x3 = functools.partial(nn.ConvNormAct, use_bias=True, activation=None)
        settings["kernel_init"] = nn.kaiming_normal_fan_out
        in_channels, padding = 3, PADDING if architecture.paper else 1
        for block, (depth, channels) in enumerate(
            zip(architecture.depths, _CHANNELS, strict=True), start=1
        ):
            for i in range(1, depth + 1):
                conv = conv3x3(in_channels, channels, 3, padding=padding, **settings)
                setattr(self, f"conv{block}_{i}", conv)
                in_channels, padding = channels, 1
        settings["kernel_init"] = nn.normal(0.01)
        padding = 0 if architecture.paper else 3
        self.fc6 = nn.Conv(in_channels, options.width, 7, padding=padding, **settings)
        self.fc7 = nn.Conv(options.width, options.width, 1, **settings)
        self.dropout6 = nnx.Dropout(options.dropout, rngs=rngs)
        self.dropout7 = nnx.Dropout(options.dropout, rngs=rngs)
        self.architecture = nnx.static(architecture)

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
    """`FeatureSpec.size` in the paper's network, less the pixels that fc6 takes off."""
    return lambda length: ceil_size(stride)(length + 2 * (PADDING - 1)) - less


def _features(
    architecture: Architecture, options: VGGOptions, output_stride: int
) -> tuple[FeatureSpec, ...]:
    size, offset = floor_size, 0
    fc7_size, fc7_offset = floor_size(32), 0
    if architecture.paper:
        size, offset = _padded_size, PADDING - 1  # a 3x3 convolution that keeps the size pads by 1
        # fc6, 7x7 without padding, takes off 3 pixels on each side.
        fc7_size, fc7_offset = _padded_size(32, less=6), offset - 3 * 32
    pools = [
        FeatureSpec(f"pool{block}", channels, 2**block, size(2**block), offset)
        for block, channels in enumerate(_CHANNELS, start=1)
    ]
    return (*pools, FeatureSpec("fc7", options.width, 32, fc7_size, fc7_offset))


def _tables(architecture: Architecture) -> dict[str, Table]:
    # torchvision counts convolutions, batch normalizations, ReLUs and pools in one Sequential:
    # features.0, 2, 5, 7, 10 ...
    rules: list[Rule] = []
    position = 0
    for block, depth in enumerate(architecture.depths, start=1):
        for i in range(1, depth + 1):
            theirs, ours = f"features.{position}", f"conv{block}_{i}"
            if architecture.batch_norm:
                rules += conv_norm(theirs, f"features.{position + 1}", ours, bias=True)
            else:
                rules += conv(theirs, ours, bias=True)
            position += 3 if architecture.batch_norm else 2
        position += 1
    rules += linear_as_conv("classifier.0", "fc6", size=(7, 7))
    rules += linear_as_conv("classifier.3", "fc7", size=(1, 1))
    classifier = "the ImageNet classifier, which a segmentation model does not have"
    tables = {"torchvision": Table(rules, drop("classifier.6.*", classifier))}
    if architecture.paper:  # the names of wkentaro/pytorch-fcn and of the authors' Caffe networks
        tables["pytorch-fcn"] = Table(
            conv("conv{b}_{i}", bias=True), conv("fc6", bias=True), conv("fc7", bias=True)
        )
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
            for position, size in ((0, 7), (3, 1)):
                linear, relu, dropout = self.classifier[position : position + 3]
                weight = linear.weight.unflatten(1, (-1, size, size))
                padding = 0 if architecture.paper else size // 2
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
        reference = Reference(features, init_weights=False, dropout=options.dropout)
    reference.classifier[0] = torch.nn.Linear(512 * 7 * 7, options.width)
    reference.classifier[3] = torch.nn.Linear(options.width, options.width)
    reference.classifier[6] = torch.nn.Linear(options.width, 1000)
    return reference


def _backbone(
    name: str,
    summary: str,
    architecture: Architecture,
    implementation: str,
    weights: Mapping[str, Weights] | None = None,
    **fields: Any,
) -> Backbone:
    papers = "Simonyan and Zisserman 2014, arXiv:1409.1556; Long et al. 2015, arXiv:1411.4038"
    return Backbone(
        name=name,
        summary=summary,
        reference=f"{papers}; {implementation}",
        options=VGGOptions,
        features=functools.partial(_features, architecture),
        build=functools.partial(VGG, architecture),
        torch=TorchBridge(
            tables=_tables(architecture),
            reference=functools.partial(_torch_reference, architecture),
            weights=weights or {},
        ),
        **fields,
    )


def _vgg(
    name: str, architecture: Architecture, millions: float, digits: str, accuracy: float
) -> Backbone:
    """The descriptor of a VGG of torchvision.

    Args:
        name: name of the function in `torchvision.models`, and in the name of the weights file.
        architecture: its dimensions.
        millions: number of parameters without the classifier's last layer, in millions.
        digits: end of the name of the weights file.
        accuracy: top-1 accuracy on ImageNet in percent.
    """
    number = name.removeprefix("vgg").removesuffix("_bn")
    normalized = " with batch normalization" if architecture.batch_norm else ""
    weights = Weights.torchvision(f"{name}-{digits}", f"ImageNet-1k, top-1 accuracy {accuracy}")
    return _backbone(
        name,
        f"VGG-{number}{normalized} of torchvision, with fc6 and fc7 as convolutions; strides 2 to "
        f"32, 64 to 4096 channels, {millions} M parameters",
        architecture,
        f"torchvision.models.{name}",
        {"IMAGENET1K_V1": weights},
    )


VGG11 = _vgg("vgg11", Architecture(_A), 128.8, "8a719046", 69.02)
VGG13 = _vgg("vgg13", Architecture(_B), 129.0, "19584684", 69.928)
VGG16 = _vgg("vgg16", Architecture(_D), 134.3, "397923af", 71.592)
VGG19 = _vgg("vgg19", Architecture(_E), 139.6, "dcbb9e9d", 72.376)
VGG11_BN = _vgg("vgg11_bn", Architecture(_A, batch_norm=True), 128.8, "6002323d", 70.37)
VGG13_BN = _vgg("vgg13_bn", Architecture(_B, batch_norm=True), 129.0, "abd245e5", 71.586)
VGG16_BN = _vgg("vgg16_bn", Architecture(_D, batch_norm=True), 134.3, "6c64b313", 73.36)
VGG19_BN = _vgg("vgg19_bn", Architecture(_E, batch_norm=True), 139.6, "c79401a0", 74.218)

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
