"""The network: patches as tokens, and blocks of attention and two linear layers.

Dosovitskiy et al. 2020, arXiv:2010.11929; Oquab et al. 2023, arXiv:2304.07193 (DINOv2); Darcet et
al. 2023, arXiv:2309.16588 (registers); Siméoni et al. 2025, arXiv:2508.10104 (DINOv3);
`timm/models/vision_transformer.py` and `timm/models/eva.py`, whose names it has.
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
from fcn_jax_vit.architecture import Architecture, ViTOptions

_DEVIATION = 0.02


class Attention(nnx.Module):
    """Self-attention of all tokens.

    Attributes:
        qkv: queries, keys and values of all heads.
        proj: of their results.
        heads: number of heads.
    """

    def __init__(
        self, plan: Architecture, deviation: float, *, rngs: nnx.Rngs, **types: Any
    ) -> None:
        """Draw the parameters; `deviation` is that of the last kernel."""
        channels = plan.channels
        settings = {"bias_init": nnx.initializers.zeros_init(), "rngs": rngs, **types}
        self.qkv = nn.Linear(
            channels,
            3 * channels,
            use_bias=not plan.is_rotary,
            kernel_init=nn.normal(_DEVIATION),
            **settings,
        )
        self.proj = nn.Linear(channels, channels, kernel_init=nn.normal(deviation), **settings)
        self.heads = plan.heads

    def __call__(self, x: jax.Array, angles: np.ndarray | None) -> jax.Array:
        """f[N, T, C] -> f[N, T, C]; `angles` f32[P, C / heads] rotate the last P tokens."""
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        if angles is not None:
            others = tokens - len(angles)
            q, k = (
                jnp.concatenate([y[:, :, :others], nn.rotate(y[:, :, others:], angles)], 2)
                for y in (q, k)
            )
        y = nn.attention(q, k, v).transpose(0, 2, 1, 3)
        return self.proj(y.reshape(batch, tokens, channels))


class Mlp(nnx.Module):
    """Two linear layers.

    Attributes:
        fc1: C -> 4 C, before GELU.
        fc2: 4 C -> C.
    """

    def __init__(self, channels: int, deviation: float, *, rngs: nnx.Rngs, **types: Any) -> None:
        """Draw the parameters; `deviation` is that of the last kernel."""
        settings = {"bias_init": nnx.initializers.zeros_init(), "rngs": rngs, **types}
        self.fc1 = nn.Linear(channels, 4 * channels, kernel_init=nn.normal(_DEVIATION), **settings)
        self.fc2 = nn.Linear(4 * channels, channels, kernel_init=nn.normal(deviation), **settings)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, T, C] -> f[N, T, C]."""
        return self.fc2(nn.gelu(self.fc1(x)))


class Block(nnx.Module):
    """Attention and linear layers, each with a shortcut.

    Attributes:
        norm1: before the attention.
        attn: the attention.
        ls1: layer scale after it, or None.
        norm2: before the linear layers.
        mlp: the linear layers.
        ls2: layer scale after them, or None.
        drop1: stochastic depth of the attention, or None.
        drop2: stochastic depth of the linear layers, or None.
    """

    def __init__(
        self, plan: Architecture, number: int, drop_rate: float, *, rngs: nnx.Rngs, **types: Any
    ) -> None:
        """Draw the parameters of the block of this number, from 1."""
        channels, scale = plan.channels, plan.layer_scale
        deviation = _DEVIATION / (math.sqrt(2 * number) if plan.is_rotary else 1)
        self.norm1 = nn.LayerNorm(channels, eps=plan.eps, **types)
        self.attn = Attention(plan, deviation, rngs=rngs, **types)
        self.ls1 = nn.LayerScale(channels, init_value=scale, **types) if scale else None
        self.norm2 = nn.LayerNorm(channels, eps=plan.eps, **types)
        self.mlp = Mlp(channels, deviation, rngs=rngs, **types)
        self.ls2 = nn.LayerScale(channels, init_value=scale, **types) if scale else None
        self.drop1 = nn.StochasticDepth(drop_rate, rngs=rngs) if drop_rate > 0 else None
        self.drop2 = nn.StochasticDepth(drop_rate, rngs=rngs) if drop_rate > 0 else None

    def __call__(self, x: jax.Array, angles: np.ndarray | None) -> jax.Array:
        """f[N, T, C] -> f[N, T, C]."""
        y = self.attn(self.norm1(x), angles)
        y = y if self.ls1 is None else self.ls1(y)
        x = nn.residual_add(y if self.drop1 is None else self.drop1(y), x)
        y = self.mlp(self.norm2(x))
        y = y if self.ls2 is None else self.ls2(y)
        return nn.residual_add(y if self.drop2 is None else self.drop2(y), x)


class Embedding(nnx.Module):
    """From an image to tokens with their positions.

    Attributes:
        proj: convolution of the patches.
        cls_token: f[1, 1, C], the class token.
        reg_token: f[1, R, C], register tokens; or None.
        pos_embed: f[1, P, C], position embeddings of the class token and of a square of patches;
            None in DINOv3.
    """

    def __init__(self, plan: Architecture, *, rngs: nnx.Rngs, **types: Any) -> None:
        """Draw the parameters."""
        channels, token = plan.channels, _DEVIATION if plan.is_rotary else 1e-6

        def param(length: int, deviation: float) -> nnx.Param[jax.Array]:
            shape = (1, length, channels)
            return nnx.Param(nn.normal(deviation)(rngs.params(), shape, types["param_dtype"]))

        self.proj = nn.Conv(3, channels, plan.patch, stride=plan.patch, rngs=rngs, **types)
        self.cls_token = param(1, token)
        self.reg_token = param(plan.registers, token) if plan.registers else None
        self.pos_embed = None if plan.is_rotary else param(plan.positions, _DEVIATION)
        self.grid, self.dtype = plan.grid, types["dtype"]

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, 3] -> f[N, T, C]: class token, registers, patches."""
        return self.with_positions(self.proj(x))

    def with_positions(self, patches: jax.Array) -> jax.Array:
        """f[N, h, w, C] -> f[N, T, C].

        Sums are in float32, and so are the gradients of parameters that all images share.
        """
        batch, height, width, channels = patches.shape
        x = patches.reshape(batch, height * width, channels).astype(jnp.float32)
        first = self.cls_token[...].astype(jnp.float32)
        if self.pos_embed is not None:
            grid, table = self.grid, self.pos_embed[...].astype(jnp.float32)
            own = table.shape[1] - grid**2
            square = table[:, own:].reshape(1, grid, grid, channels)
            square = nn.resize_bicubic(square, (height, width), antialias=True)
            x = x + square.reshape(1, height * width, channels)
            first = first + table[:, :own] if own else first
        registers = [] if self.reg_token is None else [self.reg_token[...].astype(jnp.float32)]
        shared = jnp.concatenate([first, *registers], 1)
        shared = jnp.broadcast_to(shared, (batch, *shared.shape[1:]))
        return jnp.concatenate([shared, x], 1).astype(self.dtype)


class ViT(nnx.Module):
    """A vision transformer for images of any size; without the classifier.

    Attributes:
        embed: tokens of the image.
        blocks: the blocks up to the last feature.
        norm: normalization of the features, or None.
    """

    def __init__(
        self,
        plan: Architecture,
        options: ViTOptions,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        output_stride: int | None = None,
    ) -> None:
        """Draw the parameters. The output stride is that of the patches."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.embed = Embedding(plan, rngs=rngs, **types)
        self.features = plan.blocks(options)
        rates = np.linspace(0, options.drop_path_rate, self.features[-1]).tolist()
        self.blocks = nnx.List(
            [
                Block(plan, number, rate, rngs=rngs, **types)
                for number, rate in enumerate(rates, start=1)
            ]
        )
        self.norm = (
            nn.LayerNorm(plan.channels, eps=plan.eps, **types) if options.normalize else None
        )
        self.appends_class = options.class_token
        self.plan = nnx.static(plan)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> features such as "block12", f[N, H // patch, W // patch, C].

        Raises:
            ConfigError: a side of the image is shorter than a patch.
        """
        plan = self.plan
        size = (x.shape[1] // plan.patch, x.shape[2] // plan.patch)
        if min(size) < 1:
            raise ConfigError(
                f"{plan.name} needs images of at least one patch, {plan.patch}x{plan.patch} "
                f"pixels, got {x.shape[1]}x{x.shape[2]}; enlarge or pad them"
            )
        x = self.embed(x)
        angles = nn.rotary_angles(size, plan.channels // plan.heads) if plan.is_rotary else None
        features = {}
        for number, block in enumerate(self.blocks, start=1):
            x = nn.call_block(block, x, angles)
            if number in self.features:
                features[f"block{number}"] = self._map(x, size)
        return features

    def _map(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Tokens f[N, T, C] -> feature f[N, h, w, C], or f[N, h, w, 2 C] with the class token."""
        x = x if self.norm is None else self.norm(x)
        patches = x[:, 1 + self.plan.registers :]
        if self.appends_class:
            patches = jnp.concatenate([patches, jnp.broadcast_to(x[:, :1], patches.shape)], -1)
        return patches.reshape(x.shape[0], *size, patches.shape[-1])
