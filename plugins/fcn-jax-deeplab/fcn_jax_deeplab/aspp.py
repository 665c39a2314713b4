"""Atrous spatial pyramid pooling: convolutions of one feature at several dilations.

Chen et al. 2017, arXiv:1706.05587, section 3.3; `ASPP` of
`torchvision/models/segmentation/deeplabv3.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field, PositiveInt

from fcn_jax import nn
from fcn_jax.pytorch import Table, conv_norm

RATES = (12, 24, 36)
"""The paper's dilations for a feature of stride 8."""

Rates = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


def rates_at(stride: int, rates: Sequence[int] | None = None) -> tuple[int, ...]:
    """`rates`, or the paper's, scaled so that they reach equally far at every stride."""
    return tuple(rates or (max(1, round(8 * rate / stride)) for rate in RATES))


class ImagePooling(nn.ConvNormAct):
    """Convolution, normalization and activation of the image's mean, repeated at every pixel.

    In train mode there is one value per image and channel, so batch normalization needs at least
    two images, as in PyTorch.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, H, W, O]."""
        y = super().__call__(nn.global_average_pool(x))
        # torchvision resizes the single pixel bilinearly, which repeats it.
        return jnp.broadcast_to(y, (*x.shape[:3], y.shape[3]))


class ASPP(nnx.Module):
    """A 1x1 convolution, dilated 3x3 convolutions and image pooling, joined by a 1x1 convolution.

    Each convolution has batch normalization and ReLU.

    Attributes:
        convs: the 1x1 convolution, then one 3x3 convolution for each rate.
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
        rngs: nnx.Rngs,
        **settings: Any,
    ) -> None:
        """Draw the parameters. `settings` are those of every `nn.ConvNormAct`."""
        settings["rngs"] = rngs
        conv: Callable[..., nn.ConvNormAct] = functools.partial(nn.ConvNormAct, **settings)
        self.convs = nnx.List(
            [
                conv(in_channels, channels, 1),
                *(conv(in_channels, channels, 3, dilation=rate) for rate in rates),
            ]
        )
        self.pooling = ImagePooling(in_channels, channels, 1, **settings)
        self.project = conv((len(self.convs) + 1) * channels, channels, 1)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, H, W, channels]."""
        branches = [*(branch(x) for branch in self.convs), self.pooling(x)]
        return self.dropout(self.project(jnp.concatenate(branches, axis=-1)))


def aspp_table(rates: int) -> Table:
    """The rules of an `ASPP` with that number of rates."""
    pooling = f"convs.{rates + 1}"
    return Table(
        # First the pooling: its convolution is at position 1 of a Sequential, where the other
        # branches have their normalization.
        conv_norm(f"{pooling}.1", f"{pooling}.2", "pooling"),
        conv_norm("convs.{i}.0", "convs.{i}.1", "convs.{i}"),
        conv_norm("project.0", "project.1", "project"),
    )
