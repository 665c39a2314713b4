"""VGG-16 with its fully connected layers as convolutions.

Simonyan and Zisserman 2014, arXiv:1409.1556, configuration D, as `torchvision.models.vgg16` has it (without batch normalisation);
made fully convolutional as in Long, Shelhamer and Darrell 2015, arXiv:1411.4038.
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
from fcn_jax.api import Backbone, FeatureSpec, TorchBridge, Weights
from fcn_jax.convert.rules import Rule, Table, conv, drop, linear_as_conv
from fcn_jax.nn.initializers import Initializer

# (number of 3x3 convolutions, channels) of the five blocks; a 2x2 max pool ends each.
_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


@dataclasses.dataclass(frozen=True)
class VGGOptions:
    """Options of VGG-16.

    Attributes:
        width: channels of fc6 and fc7, at least 1. Published weights need 4096; fc6 then has 102.8 M of the 134.3 M parameters.
        dropout: share of fc6's and of fc7's outputs set to 0 in train mode, at least 0 and less than 1.
    """

    width: int = 4096
    dropout: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.width < 1:
            raise ValueError(f"width is {self.width}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and less than 1")


class VGG(nnx.Module):
    """Thirteen convolutions in five blocks, then fc6 (7x7) and fc7 (1x1) as convolutions.

    fc6 pads by 3, so that its feature has pool5's size, H // 32 by W // 32. On an image of 224x224 pool5 has 7x7 pixels, and
    fc6's window at the centre, (3, 3), is exactly what torchvision flattens: there fc7 equals the activations of torchvision's
    classifier before its last layer. At every other position the same filters slide on, over zeros past the border.

    Attributes:
        conv1_1: and on to `conv5_3`: 3x3 with bias, named as in the paper's tables.
        fc6: 7x7, 512 -> `width`, with bias.
        fc7: 1x1, `width` -> `width`, with bias.
        dropout6: after fc6; holds its own random stream.
        dropout7: after fc7.
    """

    def __init__(self, options: VGGOptions, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> None:
        """Draw the parameters as torchvision does: He et al.'s normal for 3x3, deviation 0.01 for fc6 and fc7, bias 0."""

        def layer(channels_in: int, channels_out: int, size: int, padding: int, kernel_init: Initializer) -> nn.Conv:
            return nn.Conv(
                channels_in,
                channels_out,
                size,
                padding=padding,
                kernel_init=kernel_init,
                bias_init=nnx.initializers.zeros_init(),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        channels_in = 3
        for block, (depth, channels) in enumerate(_BLOCKS, start=1):
            for i in range(1, depth + 1):
                setattr(self, f"conv{block}_{i}", layer(channels_in, channels, 3, 1, nn.kaiming_normal_fan_out))
                channels_in = channels
        small_normal = nn.normal(0.01)
        self.fc6 = layer(channels_in, options.width, 7, 3, small_normal)
        self.fc7 = layer(options.width, options.width, 1, 0, small_normal)
        self.dropout6 = nnx.Dropout(options.dropout, rngs=rngs)
        self.dropout7 = nnx.Dropout(options.dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> `pool1` to `pool5`, `fc7`: f[N, H // s, W // s, C], s = 2, 4, 8, 16, 32, 32; H and W at least 32."""
        features = {}
        for block, (depth, _) in enumerate(_BLOCKS, start=1):
            for i in range(1, depth + 1):
                x = nnx.relu(getattr(self, f"conv{block}_{i}")(x))
            x = nn.max_pool(x, 2, 2)
            features[f"pool{block}"] = x
        x = self.dropout6(nnx.relu(self.fc6(x)))
        features["fc7"] = self.dropout7(nnx.relu(self.fc7(x)))
        return features


@functools.cache  # so that the specs of two equal networks are equal
def _floor_div(stride: int) -> Callable[[int], int]:
    return lambda size: size // stride


def _features(options: VGGOptions, output_stride: int) -> tuple[FeatureSpec, ...]:
    pools = [
        FeatureSpec(f"pool{block}", channels, 2**block, _floor_div(2**block))
        for block, (_, channels) in enumerate(_BLOCKS, start=1)
    ]
    return (*pools, FeatureSpec("fc7", options.width, 32, _floor_div(32)))


def _build(
    options: VGGOptions, *, output_stride: int, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
) -> VGG:
    return VGG(options, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def _tables(options: VGGOptions) -> dict[str, Table]:
    # torchvision counts convolutions, ReLUs and pools in one Sequential: features.0, 2, 5, 7, 10 ...
    rules: list[Rule] = []
    position = 0
    for block, (depth, _) in enumerate(_BLOCKS, start=1):
        for i in range(1, depth + 1):
            rules += conv(f"features.{position}", f"conv{block}_{i}", bias=True)
            position += 2
        position += 1
    rules += linear_as_conv("classifier.0", "fc6", size=(7, 7))
    rules += linear_as_conv("classifier.3", "fc7", size=(1, 1))
    classifier = drop("classifier.6.*", "the classifier of ImageNet's classes, which a segmentation network does not have")
    return {"torchvision": Table(rules, classifier)}


def _torch_reference(options: VGGOptions, output_stride: int) -> Any:
    """VGG-16 of torchvision, with its names, that gives the features by name when called."""
    from fcn_jax.convert.torch_reference import import_torchvision

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
                weight = linear.weight.reshape(shape)
                x = dropout(relu(torch.nn.functional.conv2d(x, weight, linear.bias, padding=shape[-1] // 2)))
            return {**features, "fc7": x}

    reference = Reference(torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]), init_weights=False)
    if options.width != 4096:
        reference.classifier[0] = torch.nn.Linear(512 * 7 * 7, options.width)
        reference.classifier[3] = torch.nn.Linear(options.width, options.width)
        reference.classifier[6] = torch.nn.Linear(options.width, 1000)
    for position in (2, 5):
        reference.classifier[position].p = options.dropout
    return reference


VGG16 = Backbone(
    name="vgg16",
    summary="VGG-16, torchvision's, with fc6 and fc7 as convolutions; strides 2 to 32, 64 to 4096 channels, 134.3 M parameters",
    reference="Simonyan and Zisserman 2014, arXiv:1409.1556; Long et al. 2015, arXiv:1411.4038; torchvision.models.vgg16",
    options=VGGOptions,
    features=_features,
    build=_build,
    maskable=True,
    torch=TorchBridge(
        tables=_tables,
        reference=_torch_reference,
        weights={
            "IMAGENET1K_V1": Weights(
                "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af", "ImageNet-1k, top-1 accuracy 71.592"
            )
        },
    ),
)
