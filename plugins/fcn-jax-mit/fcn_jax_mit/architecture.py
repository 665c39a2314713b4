"""The dimensions of the encoder of SegFormer, table 6 of the paper."""

from __future__ import annotations

import dataclasses

from fcn_jax.api import FeatureSpec, ceil_size

_DEPTHS = {
    "b0": (2, 2, 2, 2),
    "b1": (2, 2, 2, 2),
    "b2": (3, 4, 6, 3),
    "b3": (3, 4, 18, 3),
    "b4": (3, 8, 27, 3),
    "b5": (3, 6, 40, 3),
}

HEADS = (1, 2, 5, 8)
"""Attention heads of the stages."""

REDUCTIONS = (8, 4, 2, 1)
"""Side of the squares of pixels that become one key and value, of each stage."""

SMALLEST = 29
"""Shortest side of an image at which each stage has a whole such square."""

STRIDES = (4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A mix transformer.

    Attributes:
        size: "b0" to "b5".
        depths: blocks of the four stages.
        channels: of the stages; multiples of the numbers of heads.
    """

    size: str
    depths: tuple[int, ...]
    channels: tuple[int, ...]

    @classmethod
    def of(cls, size: str) -> Architecture:
        """The published network of a size."""
        width = 32 if size == "b0" else 64
        return cls(size, _DEPTHS[size], tuple(width * head for head in HEADS))

    @property
    def name(self) -> str:
        """The name in segmentation-models-pytorch."""
        return f"mit_{self.size}"

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """The features "stage1" to "stage4". Sizes are rounded up."""
        return tuple(
            FeatureSpec(f"stage{number}", channels, stride, ceil_size(stride))
            for number, (channels, stride) in enumerate(
                zip(self.channels, STRIDES, strict=True), start=1
            )
        )
