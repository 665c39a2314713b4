"""The dimensions of Swin transformers."""

from __future__ import annotations

import dataclasses

from fcn_jax.api import FeatureSpec, ceil_size

_SIZES = {
    "tiny": ((2, 2, 6, 2), 96, 3),
    "small": ((2, 2, 18, 2), 96, 3),
    "base": ((2, 2, 18, 2), 128, 4),
    "large": ((2, 2, 18, 2), 192, 6),
}
"""Blocks of the stages, channels of the first, and its attention heads."""

PATCH = 4


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A Swin transformer.

    Attributes:
        size: "tiny", "small", "base" or "large".
        depths: blocks of the four stages.
        width: channels of the first stage, which double from one to the next.
        heads: attention heads of the first stage, which double, too.
        window: side of a window in pixels of a feature.
    """

    size: str
    depths: tuple[int, int, int, int]
    width: int
    heads: int
    window: int = 7

    @classmethod
    def of(cls, size: str) -> Architecture:
        """The published network of a size."""
        return cls(size, *_SIZES[size])

    @property
    def name(self) -> str:
        """The name in timm."""
        return f"swin_{self.size}_patch4_window7_224"

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """The features "stage0" to "stage3". Sizes are rounded up."""
        return tuple(
            FeatureSpec(
                f"stage{stage}",
                self.width * 2**stage,
                PATCH * 2**stage,
                ceil_size(PATCH * 2**stage),
            )
            for stage in range(4)
        )

    def shift(self, stage: int, block: int, *, always: bool) -> int:
        """Shift of the windows of a block.

        Every second block is shifted by half a window. At timm's training size of 224, the last
        stage is a single window, so timm does not shift it at other sizes either, unless `always`.
        """
        return self.window // 2 if block % 2 and (stage < 3 or always) else 0
