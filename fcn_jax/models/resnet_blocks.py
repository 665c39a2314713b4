"""Blocks of ResNets, and the strides and dilations of their stages."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from fcn_jax import nn


@dataclasses.dataclass(frozen=True)
class Stage:
    """Stride and dilation of a stage.

    Attributes:
        stride: stride of its first block.
        first_dilation: dilation of its first block's first 3x3 convolution: the dilation of the
            stage before.
        dilation: dilation of its other 3x3 convolutions.
    """

    stride: int
    first_dilation: int
    dilation: int


def stages(output_stride: int) -> list[Stage]:
    """The four stages at an output stride of 32, 16 or 8. Strides beyond it become dilations."""
    found = []
    reached, dilation = 4, 1
    for stride in (1, 2, 2, 2):
        first_dilation = dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        found.append(Stage(stride, first_dilation, dilation))
    return found


conv = functools.partial(nn.ConvNormAct, kernel_init=nn.kaiming_normal_fan_out)
"""A convolution with normalization and ReLU, with the initial values of a ResNet."""


def _downsample(
    in_channels: int, out_channels: int, stride: int, **settings: Any
) -> nn.ConvNormAct | None:
    """A 1x1 convolution for the shortcut of a block that changes the shape; None for others."""
    if stride == 1 and in_channels == out_channels:
        return None
    return conv(in_channels, out_channels, 1, stride=stride, activation=None, **settings)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and ResNet-34.

    torchvision refuses to dilate it. timm dilates it, and so does this class.
    """

    def __init__(self, in_channels: int, channels: int, stage: Stage, **settings: Any) -> None:
        """Draw the parameters. The first convolution has the stride and the first dilation.

        Args:
            in_channels: channels of the input.
            channels: channels of the convolutions and of the output.
            stage: stride and dilations.
            settings: `norm`, `dtype`, `param_dtype` and `rngs` of all layers.
        """
        layer = functools.partial(conv, **settings)
        self.conv1 = layer(
            in_channels, channels, 3, stride=stage.stride, dilation=stage.first_dilation
        )
        self.conv2 = layer(channels, channels, 3, dilation=stage.dilation, activation=None)
        self.downsample = _downsample(in_channels, channels, stage.stride, **settings)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """f[N, H, W, I] -> f[N, ceil(H / stride), ceil(W / stride), O]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.conv2(self.conv1(x))
        return nn.residual_add(y, shortcut, nnx.relu)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut: the block of ResNet-50 and deeper networks."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stage: Stage,
        *,
        groups: int = 1,
        group_width: int = 64,
        **settings: Any,
    ) -> None:
        """Draw the parameters.

        The 3x3 convolution has the stride and the dilation, as in torchvision ("ResNet v1.5").

        Args:
            in_channels: channels of the input.
            channels: a quarter of the output's channels.
            stage: stride and dilations.
            groups: groups of the 3x3 convolution.
            group_width: channels of one group in the first stage.
            settings: `norm`, `dtype`, `param_dtype` and `rngs` of all layers.
        """
        layer = functools.partial(conv, **settings)
        width, out_channels = channels * group_width // 64 * groups, 4 * channels
        self.conv1 = layer(in_channels, width, 1)
        self.conv2 = layer(
            width, width, 3, stride=stage.stride, dilation=stage.first_dilation, groups=groups
        )
        self.conv3 = layer(width, out_channels, 1, activation=None)
        self.downsample = _downsample(in_channels, out_channels, stage.stride, **settings)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """f[N, H, W, I] -> f[N, ceil(H / stride), ceil(W / stride), O]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.conv3(self.conv2(self.conv1(x)))
        return nn.residual_add(y, shortcut, nnx.relu)
