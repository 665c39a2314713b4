"""The network: mobile inverted bottlenecks, as tables of widths and depths describe them.

Tan and Le 2019, arXiv:1905.11946; `timm/models/efficientnet.py`, whose names it has.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax import nn
from fcn_jax_efficientnet.architecture import FEATURES, Architecture, BlockPlan


class ConvBlock(nn.ConvNormAct):
    """A convolution with the architecture's padding, normalization, activation and initial values.

    Kernels are drawn as Google's code does: normal with variance 2 / (k^2 O / groups).
    """

    def __init__(
        self,
        plan: Architecture,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        groups: int = 1,
        **settings: Any,
    ) -> None:
        """Draw the parameters; `settings` are further ones of `nn.ConvNormAct`."""
        fan_out = kernel_size**2 * out_channels // groups
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            groups=groups,
            padding="same" if plan.tensorflow else None,
            eps=plan.eps,
            kernel_init=nn.normal(math.sqrt(2 / fan_out)),
            **{"activation": plan.activation, **settings},
        )


class SqueezeExcite(nnx.Module):
    """Multiply each channel by a factor of 0 to 1, computed from the channels' means.

    Hu et al. 2017, arXiv:1709.01507; timm's `SqueezeExcite` with SiLU.

    Attributes:
        conv_reduce: 1x1, C -> S, with bias.
        conv_expand: 1x1, S -> C, with bias.
    """

    def __init__(self, channels: int, squeezed: int, **types: Any) -> None:
        """Draw the kernels; biases start at 0."""
        settings = {
            "kernel_init": nn.kaiming_normal_fan_out,
            "bias_init": nnx.initializers.zeros_init(),
            **types,
        }
        self.conv_reduce = nn.Conv(channels, squeezed, 1, **settings)
        self.conv_expand = nn.Conv(squeezed, channels, 1, **settings)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, C] -> f[N, H, W, C]."""
        y = nn.silu(self.conv_reduce(nn.global_average_pool(x)))
        return x * jax.nn.sigmoid(self.conv_expand(y))


class Block(nnx.Module):
    """1x1 convolution to more channels, depthwise convolution, 1x1 convolution to fewer channels.

    Attributes:
        expand: the first, or None where the number of channels stays.
        depthwise: the second.
        se: squeeze and excitation after it, or None.
        project: the third, without activation.
        drop: stochastic depth of the block, or None.
    """

    def __init__(
        self, plan: Architecture, block: BlockPlan, drop_rate: float, **types: Any
    ) -> None:
        """Draw the parameters."""
        wide = block.expanded
        expands = wide != block.in_channels
        self.expand = ConvBlock(plan, block.in_channels, wide, 1, **types) if expands else None
        strides = {"stride": block.stride, "dilation": block.dilation}
        self.depthwise = ConvBlock(plan, wide, wide, block.kernel, groups=wide, **strides, **types)
        self.se = SqueezeExcite(wide, block.squeezed, **types) if block.squeezed else None
        self.project = ConvBlock(plan, wide, block.channels, 1, activation=None, **types)
        self.residual = block.residual
        drops = block.residual and drop_rate > 0
        self.drop = nn.StochasticDepth(drop_rate, rngs=types["rngs"]) if drops else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, ceil(H / stride), ceil(W / stride), O]."""
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        y = y if self.se is None else self.se(y)
        y = self.project(y)
        y = y if self.drop is None else self.drop(y)
        return nn.residual_add(y, x) if self.residual else y


class EfficientNet(nnx.Module):
    """A 3x3 convolution of stride 2, and seven stages of blocks; without the classifier.

    Attributes:
        stem: the convolution.
        blocks: the stages.
    """

    def __init__(
        self,
        plan: Architecture,
        *,
        output_stride: int = 32,
        drop_path_rate: float = 0.0,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters. Their shapes do not depend on the output stride: 32, 16 or 8."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        stages = plan.blocks(output_stride)
        self.stem = ConvBlock(plan, 3, plan.stem, 3, stride=2, **types)
        # The rate rises from 0 at the first block.
        step, number = drop_path_rate / sum(map(len, stages)), 0
        self.blocks: nnx.List[nnx.List[Block]] = nnx.List()
        for stage in stages:
            rates = [step * (number + i) for i in range(len(stage))]
            self.blocks.append(
                nnx.List(
                    Block(plan, block, rate, **types)
                    for block, rate in zip(stage, rates, strict=True)
                )
            )
            number += len(stage)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> features "c1" to "c5".

        They are f[N, ceil(H / s), ceil(W / s), C], with s = 2, 4, 8, 16, 32 or the output stride.
        """
        features: dict[str, jax.Array] = {}
        x = self.stem(x)
        for number, stage in enumerate(self.blocks):
            for block in stage:
                x = nn.call_block(block, x)
            if number in FEATURES:
                features[FEATURES[number]] = x
        return features
