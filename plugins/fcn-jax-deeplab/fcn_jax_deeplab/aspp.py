"""Atrous spatial pyramid pooling: one feature seen at several scales at once.

Chen et al. 2017, arXiv:1706.05587, section 3.3; `ASPP` of
`torchvision/models/segmentation/deeplabv3.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax import nn
from fcn_jax.nn import Initializer
from fcn_jax.pytorch.rules import Rule, Table, batch_norm, conv

RATES = (12, 24, 36)
"""The paper's dilations of a feature of stride 8."""

Init = Callable[[int], Initializer]
"""A kernel's initializer by its fan-in, such as `fcn_jax.nn.torch_default`."""


def rates_at(stride: int, rates: Sequence[int] | None = None) -> tuple[int, ...]:
    """The dilations of a feature: `rates`, or the paper's, which reach equally far into the image at every stride."""
    return (
        tuple(rates)
        if rates is not None
        else tuple(max(1, round(8 * rate / stride)) for rate in RATES)
    )


def check_options(rates: Sequence[int] | None, dropout: float, **counts: int) -> None:
    """Refuse options out of range: `counts` are at least 1. Raises `ValueError` naming the first that is wrong."""
    if rates is not None and (not rates or min(rates) < 1):
        raise ValueError(
            f"rates are {list(rates)}; they must be one dilation or more, each at least 1"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and below 1")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


class ConvBatchNormReLU(nnx.Module):
    """Convolution that keeps the size, without bias; batch normalization; ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        dilation: int = 1,
        init: Init,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters of a kernel of `size` x `size`, an odd number."""
        self.conv = nn.Conv(
            in_channels,
            out_channels,
            size,
            padding=dilation * (size // 2),
            dilation=dilation,
            use_bias=False,
            kernel_init=init(size * size * in_channels),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.bn = nn.BatchNorm(out_channels, dtype=dtype, param_dtype=param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, H, W, O]."""
        return nnx.relu(nn.conv_batch_norm(self.conv, self.bn, x))


class ImagePooling(ConvBatchNormReLU):
    """What the whole image shows, at every pixel: channel means, 1x1 convolution, batch normalization, ReLU.

    In train mode there is one value for each image and channel, so batch normalization needs two
    images or more, as in PyTorch.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, H, W, O]; torchvision resizes the single pixel bilinearly, which repeats it."""
        y = nnx.relu(nn.conv_batch_norm(self.conv, self.bn, nn.global_average_pool(x)))
        return jnp.broadcast_to(y, (*x.shape[:3], y.shape[3]))


class ASPP(nnx.Module):
    """A 1x1 convolution, dilated 3x3 convolutions and image pooling side by side, projected by a 1x1 convolution.

    Attributes:
        convs: the 1x1 convolution, then one 3x3 for each rate.
        pooling: image pooling.
        project: 1x1, (rates + 2) x `channels` -> `channels`.
        dropout: of the result.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: Sequence[int],
        dropout: float,
        *,
        init: Init = nn.torch_default,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters."""
        settings: dict[str, Any] = {
            "init": init,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.convs = nnx.List(
            [
                ConvBatchNormReLU(in_channels, channels, 1, **settings),
                *(
                    ConvBatchNormReLU(in_channels, channels, 3, dilation=rate, **settings)
                    for rate in rates
                ),
            ]
        )
        self.pooling = ImagePooling(in_channels, channels, 1, **settings)
        self.project = ConvBatchNormReLU((len(self.convs) + 1) * channels, channels, 1, **settings)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, H, W, channels]."""
        branches = [*(branch(x) for branch in self.convs), self.pooling(x)]
        return self.dropout(self.project(jnp.concatenate(branches, axis=-1)))


def aspp_table(rates: int) -> Table:
    """Rules between torchvision's `ASPP` of so many rates and the one here."""
    pooling = f"convs.{rates + 1}"
    rules: list[Rule] = [
        # First, as its normalization's place in PyTorch's Sequential, 2, leaves a convolution at 1,
        # where the others normalize.
        *conv(f"{pooling}.1", "pooling.conv"),
        *batch_norm(f"{pooling}.2", "pooling.bn"),
        *conv("convs.{i}.0", "convs.{i}.conv"),
        *batch_norm("convs.{i}.1", "convs.{i}.bn"),
        *conv("project.0", "project.conv"),
        *batch_norm("project.1", "project.bn"),
    ]
    return Table(rules)
