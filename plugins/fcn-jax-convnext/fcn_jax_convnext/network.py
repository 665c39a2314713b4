"""The network: depthwise 7x7 convolutions and two linear layers in each block.

Liu et al. 2022, arXiv:2201.03545; Woo et al. 2023, arXiv:2301.00808; `timm/models/convnext.py`,
whose names it has.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax import nn
from fcn_jax.errors import ConfigError
from fcn_jax_convnext.architecture import Architecture, StagePlan

EPS = 1e-6
_DRAWN: dict[str, Any] = {
    "kernel_init": nn.normal(0.02),
    "bias_init": nnx.initializers.zeros_init(),
}
"""timm's initial values. It cuts the normal distribution off at 100 deviations."""


class Stem(nnx.Module):
    """Patches of 4x4 pixels.

    Attributes:
        conv: 4x4 with stride 4.
        norm: after it.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, **types: Any) -> None:
        """Draw the parameters."""
        self.conv = nn.Conv(3, channels, 4, stride=4, rngs=rngs, **_DRAWN, **types)
        self.norm = nn.LayerNorm(channels, eps=EPS, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, 3] -> f[N, H // 4, W // 4, C]."""
        return self.norm(self.conv(x))


class Downsample(nnx.Module):
    """The step from one stage to the next.

    Attributes:
        norm: before the convolution.
        conv: 2x2 with stride 2; or with stride 1, dilated and padded to keep the size.
    """

    def __init__(self, plan: StagePlan, *, rngs: nnx.Rngs, **types: Any) -> None:
        """Draw the parameters."""
        self.norm = nn.LayerNorm(plan.in_channels, eps=EPS, **types)
        self.conv = nn.Conv(
            plan.in_channels,
            plan.channels,
            2,
            stride=plan.stride,
            dilation=plan.entry_dilation,
            padding="same" if plan.dilation > 1 else 0,
            rngs=rngs,
            **_DRAWN,
            **types,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, H // stride, W // stride, O]."""
        return self.conv(self.norm(x))


class Block(nnx.Module):
    """Depthwise convolution, two linear layers, layer scale, and the shortcut.

    Attributes:
        conv_dw: depthwise 7x7.
        norm: after it.
        fc1: C -> 4 C.
        grn: global response normalization after GELU, in version 2; or None.
        fc2: 4 C -> C.
        gamma: layer scale, in version 1; or None.
        drop: stochastic depth of the block, or None.
    """

    def __init__(
        self,
        channels: int,
        *,
        version: int,
        dilation: int = 1,
        drop_rate: float = 0.0,
        rngs: nnx.Rngs,
        **types: Any,
    ) -> None:
        """Draw the parameters."""
        drawn = {**_DRAWN, **types, "rngs": rngs}
        self.conv_dw = nn.Conv(
            channels, channels, 7, padding=3 * dilation, dilation=dilation, groups=channels, **drawn
        )
        self.norm = nn.LayerNorm(channels, eps=EPS, **types)
        self.fc1 = nn.Linear(channels, 4 * channels, **drawn)
        self.grn = nn.GlobalResponseNorm(4 * channels, **types) if version == 2 else None
        self.fc2 = nn.Linear(4 * channels, channels, **drawn)
        self.gamma = nn.LayerScale(channels, **types) if version == 1 else None
        self.drop = nn.StochasticDepth(drop_rate, rngs=rngs) if drop_rate > 0 else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, C] -> f[N, H, W, C]."""
        y = nn.gelu(self.fc1(self.norm(self.conv_dw(x))))
        y = y if self.grn is None else self.grn(y)
        y = self.fc2(y)
        y = y if self.gamma is None else self.gamma(y)
        y = y if self.drop is None else self.drop(y)
        return nn.residual_add(y, x)


class Stage(nnx.Module):
    """Blocks of one size.

    Attributes:
        downsample: before the blocks; None in the first stage.
        blocks: the blocks.
    """

    def __init__(
        self, plan: StagePlan, rates: list[float], *, version: int, rngs: nnx.Rngs, **types: Any
    ) -> None:
        """Draw the parameters; `rates` are those of the blocks' stochastic depth."""
        first = plan.in_channels == plan.channels
        self.downsample = None if first else Downsample(plan, rngs=rngs, **types)
        settings = {"version": version, "dilation": plan.dilation, "rngs": rngs, **types}
        self.blocks = nnx.List([Block(plan.channels, drop_rate=rate, **settings) for rate in rates])

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, H // stride, W // stride, C]."""
        x = x if self.downsample is None else self.downsample(x)
        for block in self.blocks:
            x = nn.call_block(block, x)
        return x


class ConvNeXt(nnx.Module):
    """A stem and four stages; without the classifier.

    Attributes:
        stem: patches of the image.
        stages: the stages.
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
        self.stem = Stem(plan.width, **types)
        self.stages: nnx.List[Stage] = nnx.List()
        # The rate rises from 0 at the first block to its maximum at the last.
        step, number = drop_path_rate / max(sum(plan.depths) - 1, 1), 0
        for stage in plan.stages(output_stride):
            rates = [step * (number + i) for i in range(stage.depth)]
            self.stages.append(Stage(stage, rates, version=plan.version, **types))
            number += stage.depth
        self.smallest, self.name = output_stride, plan.name

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> features "stage0" to "stage3".

        They are f[N, H // s, W // s, C], with s = 4, 8, 16, 32 or the output stride.

        Raises:
            ConfigError: a side of the image is shorter than the output stride.
        """
        if min(x.shape[1:3]) < self.smallest:
            raise ConfigError(
                f"{self.name} at output stride {self.smallest} needs images of at least "
                f"{self.smallest}x{self.smallest} pixels, got {x.shape[1]}x{x.shape[2]}; enlarge "
                "or pad them, or choose a smaller output stride"
            )
        features: dict[str, jax.Array] = {}
        x = self.stem(x)
        for number, stage in enumerate(self.stages):
            x = stage(x)
            features[f"stage{number}"] = x
        return features
