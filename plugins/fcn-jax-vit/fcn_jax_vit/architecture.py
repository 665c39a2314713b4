"""The dimensions of vision transformers, and the options that choose their features."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field, PositiveInt

from fcn_jax.api import FeatureSpec, floor_size
from fcn_jax.errors import ConfigError

_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
"""Channels, blocks and heads."""

FAMILIES = {
    "vit": "vit_{}_patch16_224",
    "dinov2": "vit_{}_patch14_dinov2",
    "dinov2_reg": "vit_{}_patch14_reg4_dinov2",
    "dinov3": "vit_{}_patch16_dinov3",
}
"""The names in timm."""


@dataclasses.dataclass(frozen=True)
class ViTOptions:
    """Options of all vision transformers.

    Attributes:
        blocks: numbers of the blocks whose outputs are features, from 1, in rising order; four at
            equal distances if empty. Blocks after the last one are not built.
        normalize: whether every feature is normalized by the layer that follows the last block.
        class_token: whether the class token is appended to each pixel of a feature, which then has
            twice the channels.
        drop_path_rate: stochastic depth in training: the probability to leave out a branch rises
            from 0 in the first block to this rate in the last.
    """

    blocks: tuple[PositiveInt, ...] = ()
    normalize: bool = True
    class_token: bool = False
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A vision transformer.

    Attributes:
        family: key of `FAMILIES`.
        size: "tiny", "small", "base" or "large".
        channels: of a token.
        depth: number of blocks.
        heads: number of attention heads, a divisor of `channels`.
        grid: side of the square of position embeddings; 0 in DINOv3, which has rotary ones.
    """

    family: str
    size: str
    channels: int
    depth: int
    heads: int
    grid: int

    @classmethod
    def of(cls, family: str, size: str) -> Architecture:
        """The published network of a family and size."""
        grid = {"vit": 14, "dinov3": 0}.get(family, 37)
        return cls(family, size, *_SIZES[size], grid)

    @property
    def name(self) -> str:
        """The name in timm."""
        return FAMILIES[self.family].format(self.size)

    @property
    def is_rotary(self) -> bool:
        """Whether it is DINOv3, whose positions are rotary."""
        return self.family == "dinov3"

    @property
    def patch(self) -> int:
        """Height and width of a patch in pixels."""
        return 14 if self.family.startswith("dinov2") else 16

    @property
    def registers(self) -> int:
        """Number of register tokens."""
        return 4 if self.family in ("dinov2_reg", "dinov3") else 0

    @property
    def positions(self) -> int:
        """Number of position embeddings. The class token may have one, too; registers have none."""
        return self.grid**2 + (self.family in ("vit", "dinov2"))

    @property
    def eps(self) -> float:
        """Of layer normalization."""
        return 1e-5 if self.is_rotary else 1e-6

    @property
    def layer_scale(self) -> float | None:
        """Initial value of the layer scales; None without."""
        return None if self.family == "vit" else 1e-5

    def blocks(self, options: ViTOptions) -> tuple[int, ...]:
        """Numbers of the blocks whose outputs are features, from 1.

        Raises:
            ConfigError: the options name blocks that do not exist, or in another order.
        """
        chosen = options.blocks
        if not chosen:
            return tuple(sorted({-(-self.depth * i // 4) for i in range(1, 5)}))
        if list(chosen) != sorted(set(chosen)) or chosen[-1] > self.depth:
            raise ConfigError(
                f"{self.name}: blocks is {list(chosen)}; it must be rising numbers from 1 to "
                f"{self.depth}, such as {list(self.blocks(ViTOptions()))}"
            )
        return chosen

    def specs(self, options: ViTOptions) -> tuple[FeatureSpec, ...]:
        """The features, such as "block3" to "block12". Incomplete patches are dropped."""
        channels = self.channels * (2 if options.class_token else 1)
        return tuple(
            FeatureSpec(
                f"block{number}",
                channels,
                self.patch,
                floor_size(self.patch),
                class_token=options.class_token,
            )
            for number in self.blocks(options)
        )
