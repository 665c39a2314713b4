"""The network: overlapping patches, and attention to a reduced number of keys.

Xie et al. 2021, arXiv:2105.15203, and table 6 there. The names are those of the authors' code.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax import nn
from fcn_jax.errors import ConfigError
from fcn_jax_mit.architecture import HEADS, REDUCTIONS, SMALLEST, Architecture

_LINEAR: dict[str, Any] = {
    "kernel_init": nn.normal(0.02),
    "bias_init": nnx.initializers.zeros_init(),
}


def _conv(inputs: int, outputs: int, size: int, *, groups: int = 1, **settings: Any) -> nn.Conv:
    """A convolution with normal initial values of variance 2 / (k^2 O / groups)."""
    drawn = nn.normal(math.sqrt(2 / (size * size * outputs // groups)))
    settings = {"bias_init": nnx.initializers.zeros_init(), **settings}
    return nn.Conv(inputs, outputs, size, groups=groups, kernel_init=drawn, **settings)


class PatchEmbed(nnx.Module):
    """Patches that overlap.

    Attributes:
        proj: strided convolution.
        norm: after it.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int, *, rngs: nnx.Rngs, **types: Any
    ) -> None:
        """Draw the parameters."""
        settings = {"stride": stride, "padding": size // 2, "rngs": rngs, **types}
        self.proj = _conv(inputs, outputs, size, **settings)
        self.norm = nn.LayerNorm(outputs, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, ceil(H / stride), ceil(W / stride), O]."""
        return self.norm(self.proj(x))


class Attention(nnx.Module):
    """Attention of all pixels to squares of pixels.

    Attributes:
        q: queries of all heads.
        kv: keys and values.
        proj: of the results.
        sr: convolution of the squares, whose stride is their side; None if they are pixels.
        norm: after it, or None.
        heads: number of heads.
    """

    def __init__(
        self, channels: int, heads: int, reduction: int, *, rngs: nnx.Rngs, **types: Any
    ) -> None:
        """Draw the parameters."""
        self.q = nn.Linear(channels, channels, rngs=rngs, **_LINEAR, **types)
        self.kv = nn.Linear(channels, 2 * channels, rngs=rngs, **_LINEAR, **types)
        self.proj = nn.Linear(channels, channels, rngs=rngs, **_LINEAR, **types)
        settings = {"stride": reduction, "rngs": rngs, **types}
        reduces = reduction > 1
        self.sr = _conv(channels, channels, reduction, **settings) if reduces else None
        self.norm = nn.LayerNorm(channels, **types) if reduces else None
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, C] -> f[N, H, W, C]."""
        batch, height, width, channels = x.shape
        squares = x if self.sr is None or self.norm is None else self.norm(self.sr(x))
        q = self.q(x).reshape(batch, height * width, 1, self.heads, -1)
        kv = self.kv(squares)
        kv = kv.reshape(batch, kv.shape[1] * kv.shape[2], 2, self.heads, -1)
        (q,), (k, v) = q.transpose(2, 0, 3, 1, 4), kv.transpose(2, 0, 3, 1, 4)
        y = nn.attention(q, k, v).transpose(0, 2, 1, 3)
        return self.proj(y.reshape(batch, height, width, channels))


class Mlp(nnx.Module):
    """Two linear layers, and a depthwise convolution that tells pixels their positions.

    Attributes:
        fc1: C -> 4 C.
        dwconv: depthwise 3x3, before GELU.
        fc2: 4 C -> C.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, **types: Any) -> None:
        """Draw the parameters."""
        wide = 4 * channels
        self.fc1 = nn.Linear(channels, wide, rngs=rngs, **_LINEAR, **types)
        self.dwconv = _conv(wide, wide, 3, groups=wide, padding=1, rngs=rngs, **types)
        self.fc2 = nn.Linear(wide, channels, rngs=rngs, **_LINEAR, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, C] -> f[N, H, W, C]."""
        return self.fc2(nn.gelu(self.dwconv(self.fc1(x))))


class Block(nnx.Module):
    """Attention and linear layers, each with a shortcut.

    Attributes:
        norm1: before the attention.
        attn: the attention.
        norm2: before the linear layers.
        mlp: the linear layers.
        drop1: stochastic depth of the attention, or None.
        drop2: stochastic depth of the linear layers, or None.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        reduction: int,
        drop_rate: float,
        *,
        rngs: nnx.Rngs,
        **types: Any,
    ) -> None:
        """Draw the parameters."""
        self.norm1 = nn.LayerNorm(channels, eps=1e-6, **types)
        self.attn = Attention(channels, heads, reduction, rngs=rngs, **types)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6, **types)
        self.mlp = Mlp(channels, rngs=rngs, **types)
        self.drop1 = nn.StochasticDepth(drop_rate, rngs=rngs) if drop_rate > 0 else None
        self.drop2 = nn.StochasticDepth(drop_rate, rngs=rngs) if drop_rate > 0 else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, C] -> f[N, H, W, C]."""
        y = self.attn(self.norm1(x))
        x = nn.residual_add(y if self.drop1 is None else self.drop1(y), x)
        y = self.mlp(self.norm2(x))
        return nn.residual_add(y if self.drop2 is None else self.drop2(y), x)


class MixTransformer(nnx.Module):
    """Four stages; without the classifier.

    Attributes:
        patch_embed1: patches of the image; `patch_embed2` to `4` take the stage before.
        block1: blocks of the first stage; `block2` to `4` of the others.
        norm1: after the first stage; `norm2` to `4` after the others.
    """

    def __init__(
        self,
        plan: Architecture,
        *,
        drop_path_rate: float = 0.0,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        output_stride: int = 32,
    ) -> None:
        """Draw the parameters. The only output stride is 32."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        rates = np.linspace(0, drop_path_rate, sum(plan.depths)).tolist()
        inputs = 3
        stages = zip(plan.channels, plan.depths, HEADS, REDUCTIONS, strict=True)
        for number, (channels, depth, heads, reduction) in enumerate(stages, start=1):
            size, stride = (7, 4) if number == 1 else (3, 2)
            patches = PatchEmbed(inputs, channels, size, stride, rngs=rngs, **types)
            blocks = [
                Block(channels, heads, reduction, rates.pop(0), rngs=rngs, **types)
                for _ in range(depth)
            ]
            setattr(self, f"patch_embed{number}", patches)
            setattr(self, f"block{number}", nnx.List(blocks))
            setattr(self, f"norm{number}", nn.LayerNorm(channels, eps=1e-6, **types))
            inputs = channels
        self.name = plan.name

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> features "stage1" to "stage4".

        They are f[N, ceil(H / s), ceil(W / s), C], with s = 4, 8, 16, 32.

        Raises:
            ConfigError: a side of the image is shorter than 29 pixels.
        """
        if min(x.shape[1:3]) < SMALLEST:
            raise ConfigError(
                f"{self.name} needs images of at least {SMALLEST}x{SMALLEST} pixels, so that each "
                f"stage has a key for its attention, got {x.shape[1]}x{x.shape[2]}; enlarge or pad "
                "them"
            )
        features: dict[str, jax.Array] = {}
        for number in range(1, 5):
            x = getattr(self, f"patch_embed{number}")(x)
            for block in getattr(self, f"block{number}"):
                x = nn.call_block(block, x)
            x = features[f"stage{number}"] = getattr(self, f"norm{number}")(x)
        return features
