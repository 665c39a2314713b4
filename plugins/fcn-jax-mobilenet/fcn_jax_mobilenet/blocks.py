"""What MobileNets are made of: convolutions with what follows them, squeeze and excitation, inverted residuals.

Sandler et al. 2018, arXiv:1801.04381; Howard et al. 2019, arXiv:1905.02244;
`torchvision/ops/misc.py`, `torchvision/models/mobilenetv2.py` and `mobilenetv3.py`.
"""

from __future__ import annotations

import dataclasses
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


class ConvNormActivation(nnx.Module):
    """As torchvision's `Conv2dNormActivation`: a convolution without bias, batch normalization, and an activation or none.

    It is padded so that its stride alone changes the image's size.

    Attributes:
        conv: the convolution.
        bn: the batch normalization.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        norm: Norm,
        activation: Activation | None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters as torchvision does."""
        self.conv = nn.Conv(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            use_bias=False,
            kernel_init=nn.kaiming_normal_fan_out,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.bn = nn.BatchNorm(
            out_channels, eps=norm.eps, momentum=norm.momentum, dtype=dtype, param_dtype=param_dtype
        )
        self.activation = nnx.static(activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, ceil(H / stride), ceil(W / stride), O]."""
        y = nn.conv_batch_norm(self.conv, self.bn, x)
        return y if self.activation is None else self.activation(y)


class SqueezeExcitation(nnx.Module):
    """Each channel times a number between 0 and 1 that the means of all channels over the image decide.

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
        in_channels: what comes in.
        expanded: channels of the depthwise convolution; where they are as many as come in, there is
            no convolution before it.
        channels: what goes out.
        kernel: the depthwise convolution's height and width, odd.
        stride: of the depthwise convolution, 1 or 2.
        activation: after the first and the depthwise convolution; the last one has none.
        residual: whether the input is added to the output.
        squeezed: channels within the squeeze and excitation; 0 for none.
        dilation: of the depthwise convolution.
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
    """1x1 convolution to more channels, depthwise convolution, perhaps squeeze and excitation, 1x1 convolution to fewer channels.

    Attributes:
        block: these, in order.
    """

    def __init__(
        self, plan: Block, norm: Norm, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs
    ) -> None:
        """Draw the parameters as torchvision does."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        wide = plan.expanded
        layers: list[nnx.Module] = []
        if wide != plan.in_channels:
            layers.append(
                ConvNormActivation(
                    plan.in_channels, wide, 1, norm=norm, activation=plan.activation, **types
                )
            )
        layers.append(
            ConvNormActivation(
                wide,
                wide,
                plan.kernel,
                norm=norm,
                activation=plan.activation,
                stride=plan.stride,
                dilation=plan.dilation,
                groups=wide,
                **types,
            )
        )
        if plan.squeezed:
            layers.append(SqueezeExcitation(wide, plan.squeezed, **types))
        layers.append(
            ConvNormActivation(wide, plan.channels, 1, norm=norm, activation=None, **types)
        )
        self.block = nnx.List(layers)
        self.residual = plan.residual

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, ceil(H / stride), ceil(W / stride), O]."""
        y = x
        for layer in self.block:
            y = layer(y)
        return x + y if self.residual else y
