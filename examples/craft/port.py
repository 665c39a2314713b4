"""CRAFT in Flax NNX, and the names of its weights in PyTorch. See docs/porting.md."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax import nn
from fcn_jax.convert.load import import_by_table
from fcn_jax.pytorch import Rule, Table, conv, conv_norm, files

STAGES = ((0, 3, 7, 10), (14, 17), (20, 24, 27), (30, 34, 37))
"""The convolutions of each slice, by their index in torchvision's `vgg16_bn().features`."""

CHANNELS = ((1, 1, 2, 2), (4, 4), (4, 8, 8), (8, 8, 8))
"""Their output channels, in multiples of the first one's."""

POOLED = (7, 14, 24, 34)
"""Convolutions with a max pooling before them."""


class Stage(nnx.Module):
    """A slice of the encoder, which ends before the last ReLU.

    Attributes:
        convs: 3x3 convolutions with batch normalization.
    """

    def __init__(self, number: int, in_channels: int, base: int, rngs: nnx.Rngs) -> None:
        """Draw the parameters of a stage, from 0."""
        channels = [in_channels, *(factor * base for factor in CHANNELS[number])]
        self.convs = nnx.List(
            nn.ConvNormAct(i, o, 3, use_bias=True, activation=None, rngs=rngs)
            for i, o in itertools.pairwise(channels)
        )
        self.pooled = nnx.static(tuple(index in POOLED for index in STAGES[number]))
        self.is_first = number == 0

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, C] -> f[N, h, w, O]."""
        for number, (layer, pooled) in enumerate(zip(self.convs, self.pooled, strict=True)):
            if number or not self.is_first:
                x = nnx.relu(x)
            x = layer(nn.max_pool(x, 2, 2) if pooled else x)
        return x


class DoubleConv(nnx.Module):
    """1x1 and 3x3 convolution, each with batch normalization and ReLU."""

    def __init__(self, in_channels: int, middle: int, out_channels: int, rngs: nnx.Rngs) -> None:
        """Draw the parameters."""
        self.conv1 = nn.ConvNormAct(in_channels, middle, 1, use_bias=True, rngs=rngs)
        self.conv2 = nn.ConvNormAct(middle, out_channels, 3, use_bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, h, w, C] -> f[N, h, w, O]."""
        return self.conv2(self.conv1(x))


class Craft(nnx.Module):
    """CRAFT, a text detector.

    Attributes:
        stages: slices of the encoder.
        fc6: 3x3 with dilation 6, after a max pooling.
        fc7: 1x1.
        ups: the decoder, from deep to shallow.
        score: the last five convolutions.
    """

    def __init__(self, base: int = 64, *, skips_after_relu: bool = True, rngs: nnx.Rngs) -> None:
        """Draw the parameters.

        Args:
            base: channels of the first convolution.
            skips_after_relu: False is the fault that docs/porting.md finds.
            rngs: random streams.
        """
        widths = [3, *(factors[-1] * base for factors in CHANNELS)]
        self.stages = nnx.List(Stage(i, widths[i], base, rngs) for i in range(4))
        self.fc6 = nn.Conv(8 * base, 16 * base, 3, padding=6, dilation=6, rngs=rngs)
        self.fc7 = nn.Conv(16 * base, 16 * base, 1, rngs=rngs)
        self.ups = nnx.List(
            DoubleConv(i * base, m * base, o, rngs)
            for i, m, o in ((24, 8, 4 * base), (12, 4, 2 * base), (6, 2, base), (3, 1, base // 2))
        )
        half, quarter = base // 2, base // 4
        self.score = nnx.List(
            nn.Conv(i, o, size, padding=size // 2, rngs=rngs)
            for i, o, size in (
                (half, half, 3),
                (half, half, 3),
                (half, quarter, 3),
                (quarter, quarter, 1),
                (quarter, 2, 1),
            )
        )
        self.skips_after_relu = skips_after_relu

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, 3] -> scores f[N, H // 2, W // 2, 2]: text, links between characters."""
        skips = []
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            # PyTorch's next slice begins with a ReLU in place, which changes the skip, too. After
            # the last slice comes a max pooling, so that its skip has negative values.
            in_place = number < len(self.stages) and self.skips_after_relu
            skips.append(nnx.relu(x) if in_place else x)
        y = self.fc7(self.fc6(nn.max_pool(x, 3, 1, 1)))
        for number, (up, skip) in enumerate(zip(self.ups, reversed(skips), strict=True)):
            if number:
                y = nn.resize_bilinear(y, (skip.shape[1], skip.shape[2]))
            y = up(jnp.concatenate([y, skip], -1))
        for number, layer in enumerate(self.score):
            y = layer(nnx.relu(y) if number else y)
        return y


def _rules() -> list[Rule]:
    rules: list[Rule] = []
    for stage, indices in enumerate(STAGES):
        for number, index in enumerate(indices):
            theirs, ours = f"basenet.slice{stage + 1}", f"stages.{stage}.convs.{number}"
            rules += conv_norm(f"{theirs}.{index}", f"{theirs}.{index + 1}", ours, bias=True)
    for number in range(4):
        theirs, ours = f"upconv{number + 1}.conv", f"ups.{number}"
        rules += conv_norm(f"{theirs}.0", f"{theirs}.1", f"{ours}.conv1", bias=True)
        rules += conv_norm(f"{theirs}.3", f"{theirs}.4", f"{ours}.conv2", bias=True)
    for number in range(5):
        rules += conv(f"conv_cls.{2 * number}", f"score.{number}", bias=True)
    return rules


RULES = Table(
    conv("basenet.slice5.1", "fc6", bias=True), conv("basenet.slice5.2", "fc7", bias=True), _rules()
)
"""The names of the published weights."""


def load(path: Any, **options: Any) -> Craft:
    """Return the network with the weights of a file, in eval mode.

    Raises:
        WeightsError: the file cannot be read, or its tensors do not fit.
    """
    tensors = files.read(path)
    # The file was saved from DataParallel, which adds the prefix.
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    network = Craft(**options, rngs=nnx.Rngs(0))
    import_by_table(network, tensors, RULES)
    network.eval()
    return network
