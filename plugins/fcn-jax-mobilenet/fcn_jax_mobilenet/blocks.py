"""The layers of MobileNets: convolutions, squeeze and excitation, inverted residuals.

Sandler et al. 2018, arXiv:1801.04381; Howard et al. 2019, arXiv:1905.02244;
`torchvision/ops/misc.py`, `torchvision/models/mobilenetv2.py` and `mobilenetv3.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from fcn_jax import nn

Activation = Callable[[jax.Array], jax.Array]


class Norm(NamedTuple):
    """Settings of batch normalization; `momentum` is the new value's share."""

    eps: float = 1e-5
    momentum: float = 0.1


def conv_layer(norm: Norm, **types: Any) -> Callable[..., nn.ConvNormAct]:
    """The constructor of all convolutions of a network, as torchvision initializes them."""
    return functools.partial(
        nn.ConvNormAct, kernel_init=nn.kaiming_normal_fan_out, **norm._asdict(), **types
    )


class SqueezeExcitation(nnx.Module):
    """Multiply each channel by a factor of 0 to 1, computed from the channels' means.

    Hu et al. 2017, arXiv:1709.01507; `torchvision.ops.SqueezeExcitation` with `Hardsigmoid`.

    Attributes:
        fc1: 1x1, C -> S, with bias.
        fc2: 1x1, S -> C, with bias.
    """

    def __init__(
        self, channels: int, squeezed: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs
    ) -> None:
        """Draw the parameters as torchvision's MobileNetV3 does; biases start at 0."""
        settings: dict[str, Any] = {
            "kernel_init": nn.kaiming_normal_fan_out,
            "bias_init": nnx.initializers.zeros_init(),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.fc1 = nn.Conv(channels, squeezed, 1, **settings)
        self.fc2 = nn.Conv(squeezed, channels, 1, **settings)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, C] -> f[N, H, W, C]."""
        return x * jax.nn.hard_sigmoid(self.fc2(nnx.relu(self.fc1(nn.global_average_pool(x)))))


@dataclasses.dataclass(frozen=True)
class Block:
    """One inverted residual.

    Attributes:
        in_channels: input channels.
        expanded: channels of the depthwise convolution. If they equal `in_channels`, there is no
            convolution before it.
        channels: output channels.
        kernel: height and width of the depthwise convolution, odd.
        stride: stride of the depthwise convolution, 1 or 2.
        activation: after the first and the depthwise convolution; the last one has none.
        residual: whether the input is added to the output.
        squeezed: inner channels of the squeeze and excitation; 0 for none.
        dilation: dilation of the depthwise convolution.
    """

    in_channels: int
    expanded: int
    channels: int
    kernel: int
    stride: int
    activation: Activation
    residual: bool
    squeezed: int = 0
    dilation: int = 1


class InvertedResidual(nnx.Module):
    """1x1 convolution to more channels, depthwise convolution, 1x1 convolution to fewer channels.

    Some have squeeze and excitation after the depthwise convolution.

    Attributes:
        block: these layers, in order.
    """

    def __init__(
        self, plan: Block, norm: Norm, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs
    ) -> None:
        """Draw the parameters as torchvision does."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        conv = conv_layer(norm, **types)
        wide = plan.expanded
        layers: list[nnx.Module] = []
        if wide != plan.in_channels:
            layers.append(conv(plan.in_channels, wide, 1, activation=plan.activation))
        layers.append(
            conv(
                wide,
                wide,
                plan.kernel,
                stride=plan.stride,
                dilation=plan.dilation,
                groups=wide,
                activation=plan.activation,
            )
        )
        if plan.squeezed:
            layers.append(SqueezeExcitation(wide, plan.squeezed, **types))
        layers.append(conv(wide, plan.channels, 1, activation=None))
        self.block = nnx.List(layers)
        self.residual = plan.residual

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, ceil(H / stride), ceil(W / stride), O]."""
        y = x
        for layer in self.block:
            y = layer(y)
        return nn.residual_add(y, x) if self.residual else y
