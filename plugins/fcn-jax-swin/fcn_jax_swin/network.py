"""The network: attention within windows, which are shifted in every second block.

Liu et al. 2021, arXiv:2103.14030; `timm/models/swin_transformer.py`, whose names it has.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax import nn
from fcn_jax.errors import ConfigError
from fcn_jax_swin.architecture import PATCH, Architecture

_NORMAL = nn.normal(0.02)
_LINEAR: dict[str, Any] = {"kernel_init": _NORMAL, "bias_init": nnx.initializers.zeros_init()}


class PatchEmbed(nnx.Module):
    """Patches of 4x4 pixels.

    Attributes:
        proj: 4x4 with stride 4.
        norm: after it.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, **types: Any) -> None:
        """Draw the parameters."""
        self.proj = nn.Conv(3, channels, PATCH, stride=PATCH, rngs=rngs, **types)
        self.norm = nn.LayerNorm(channels, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, 3] -> f[N, ceil(H / 4), ceil(W / 4), C]."""
        return self.norm(self.proj(_padded(x, PATCH)))


class Merging(nnx.Module):
    """Squares of 2x2 pixels become one with twice the channels.

    Attributes:
        norm: of the four pixels' channels.
        reduction: 4 C -> 2 C, without bias.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, **types: Any) -> None:
        """Draw the parameters."""
        self.norm = nn.LayerNorm(4 * channels, **types)
        self.reduction = nn.Linear(
            4 * channels, 2 * channels, use_bias=False, kernel_init=_NORMAL, rngs=rngs, **types
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, C] -> f[N, ceil(H / 2), ceil(W / 2), 2 C]."""
        x = _padded(x, 2)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(batch, height // 2, width // 2, 4 * channels)))


class WindowAttention(nnx.Module):
    """Attention within windows, with a bias for each relative position.

    Attributes:
        relative_position_bias_table: f[(2 window - 1)^2, heads].
        qkv: queries, keys and values of all heads.
        proj: of their results.
        heads: number of heads.
        window: side of a window.
    """

    def __init__(
        self, channels: int, heads: int, window: int, *, rngs: nnx.Rngs, **types: Any
    ) -> None:
        """Draw the parameters."""
        shape, dtype = ((2 * window - 1) ** 2, heads), types["param_dtype"]
        self.relative_position_bias_table = nnx.Param(_NORMAL(rngs.params(), shape, dtype))
        self.qkv = nn.Linear(channels, 3 * channels, rngs=rngs, **_LINEAR, **types)
        self.proj = nn.Linear(channels, channels, rngs=rngs, **_LINEAR, **types)
        self.heads, self.window = heads, window

    def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
        """f[N, M, T, C] -> f[N, M, T, C]: M windows of T pixels, with a mask f32[M, T, T]."""
        *outer, channels = x.shape
        qkv = self.qkv(x).reshape(*outer, 3, self.heads, channels // self.heads)
        q, k, v = qkv.transpose(3, 0, 1, 4, 2, 5)
        table = self.relative_position_bias_table[...].astype(jnp.float32)
        bias = table[nn.relative_positions(self.window)].transpose(2, 0, 1)
        bias = bias if mask is None else bias + mask[:, None]
        y = nn.attention(q, k, v, bias).swapaxes(2, 3)
        return self.proj(y.reshape(*outer, channels))


class Mlp(nnx.Module):
    """Two linear layers.

    Attributes:
        fc1: C -> 4 C, before GELU.
        fc2: 4 C -> C.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, **types: Any) -> None:
        """Draw the parameters."""
        self.fc1 = nn.Linear(channels, 4 * channels, rngs=rngs, **_LINEAR, **types)
        self.fc2 = nn.Linear(4 * channels, channels, rngs=rngs, **_LINEAR, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, C] -> f[N, H, W, C]."""
        return self.fc2(nn.gelu(self.fc1(x)))


class Block(nnx.Module):
    """Attention and linear layers, each with a shortcut.

    Attributes:
        norm1: before the attention.
        attn: the attention.
        norm2: before the linear layers.
        mlp: the linear layers.
        drop1: stochastic depth of the attention, or None.
        drop2: stochastic depth of the linear layers, or None.
        shift: pixels by which the windows are shifted.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        shift: int,
        drop_rate: float,
        *,
        rngs: nnx.Rngs,
        **types: Any,
    ) -> None:
        """Draw the parameters."""
        self.norm1 = nn.LayerNorm(channels, **types)
        self.attn = WindowAttention(channels, heads, window, rngs=rngs, **types)
        self.norm2 = nn.LayerNorm(channels, **types)
        self.mlp = Mlp(channels, rngs=rngs, **types)
        self.drop1 = nn.StochasticDepth(drop_rate, rngs=rngs) if drop_rate > 0 else None
        self.drop2 = nn.StochasticDepth(drop_rate, rngs=rngs) if drop_rate > 0 else None
        self.shift = shift

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, C] -> f[N, H, W, C]."""
        y = self._attend(self.norm1(x))
        x = nn.residual_add(y if self.drop1 is None else self.drop1(y), x)
        y = self.mlp(self.norm2(x))
        return nn.residual_add(y if self.drop2 is None else self.drop2(y), x)

    def _attend(self, x: jax.Array) -> jax.Array:
        """Attention in shifted windows. As in timm, the image is shifted, then padded."""
        _, height, width, _ = x.shape
        shift, window = self.shift, self.attn.window
        x = jnp.roll(x, (-shift, -shift), (1, 2)) if shift else x
        x = _padded(x, window)
        size = (x.shape[1], x.shape[2])
        mask = nn.shift_mask(size, window, shift) if shift else None
        x = nn.from_windows(self.attn(nn.to_windows(x, window), mask), size, window)
        x = x[:, :height, :width]
        return jnp.roll(x, (shift, shift), (1, 2)) if shift else x


class Stage(nnx.Module):
    """Blocks of one size.

    Attributes:
        downsample: before the blocks; None in the first stage.
        blocks: the blocks.
    """

    def __init__(self, downsample: Merging | None, blocks: list[Block]) -> None:
        """Combine modules."""
        self.downsample = downsample
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, h, w, C]; halved, rounded up, with `downsample`."""
        x = x if self.downsample is None else self.downsample(x)
        for block in self.blocks:
            x = nn.call_block(block, x)
        return x


class Swin(nnx.Module):
    """Four stages; without the classifier and the normalization before it.

    Attributes:
        patch_embed: patches of the image.
        layers: the stages.
    """

    def __init__(
        self,
        plan: Architecture,
        *,
        drop_path_rate: float = 0.0,
        always_partition: bool = False,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        output_stride: int = 32,
    ) -> None:
        """Draw the parameters. The only output stride is 32."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.patch_embed = PatchEmbed(plan.width, **types)
        rates = np.linspace(0, drop_path_rate, sum(plan.depths)).tolist()
        self.layers: nnx.List[Stage] = nnx.List()
        for stage, depth in enumerate(plan.depths):
            channels, heads = plan.width * 2**stage, plan.heads * 2**stage
            merging = Merging(channels // 2, **types) if stage else None
            shifts = [plan.shift(stage, i, always=always_partition) for i in range(depth)]
            blocks = [
                Block(channels, heads, plan.window, shift, rates.pop(0), **types)
                for shift in shifts
            ]
            self.layers.append(Stage(merging, blocks))
        self.name = plan.name

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> features "stage0" to "stage3".

        They are f[N, ceil(H / s), ceil(W / s), C], with s = 4, 8, 16, 32.

        Raises:
            ConfigError: the image is empty.
        """
        if min(x.shape[1:3]) < 1:
            raise ConfigError(
                f"{self.name} needs images of at least one pixel, got {x.shape[1]}x{x.shape[2]}"
            )
        features: dict[str, jax.Array] = {}
        x = self.patch_embed(x)
        for number, stage in enumerate(self.layers):
            x = stage(x)
            features[f"stage{number}"] = x
        return features


def _padded(x: jax.Array, multiple: int) -> jax.Array:
    """Pad f[N, H, W, C] with zeros at the bottom and right, to multiples of a number of pixels."""
    edges = [(0, -side % multiple) for side in x.shape[1:3]]
    return jnp.pad(x, [(0, 0), *edges, (0, 0)])
