"""The dimensions of ConvNeXts: blocks and channels by size."""

from __future__ import annotations

import dataclasses

from fcn_jax.api import FeatureSpec, floor_size

_SIZES = {
    "atto": ((2, 2, 6, 2), 40),
    "femto": ((2, 2, 6, 2), 48),
    "pico": ((2, 2, 6, 2), 64),
    "nano": ((2, 2, 8, 2), 80),
    "tiny": ((3, 3, 9, 3), 96),
    "small": ((3, 3, 27, 3), 96),
    "base": ((3, 3, 27, 3), 128),
    "large": ((3, 3, 27, 3), 192),
    "xlarge": ((3, 3, 27, 3), 256),
    "huge": ((3, 3, 27, 3), 352),
}
"""Blocks of the stages, and channels of the first."""

_WITH_CONVOLUTIONS = ("atto", "femto", "pico", "nano")
"""Sizes whose linear layers are 1x1 convolutions in timm."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage, and the convolution before it.

    Attributes:
        in_channels: of the stage before.
        channels: of the stage.
        depth: number of blocks.
        stride: of the convolution before it, 2; or 1 if it is dilated instead.
        entry_dilation: dilation of the convolution before it.
        dilation: dilation of the depthwise convolutions.
    """

    in_channels: int
    channels: int
    depth: int
    stride: int
    entry_dilation: int
    dilation: int


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A ConvNeXt.

    Attributes:
        version: 1, with layer scale; or 2, with global response normalization.
        size: key of `_SIZES`.
        depths: blocks of the four stages.
        width: channels of the first stage, which double from one to the next.
    """

    version: int
    size: str
    depths: tuple[int, int, int, int]
    width: int

    @classmethod
    def of(cls, version: int, size: str) -> Architecture:
        """The published network of a size."""
        return cls(version, size, *_SIZES[size])

    @property
    def name(self) -> str:
        """The name in timm."""
        return f"convnext{'v2' * (self.version == 2)}_{self.size}"

    @property
    def has_convolutions(self) -> bool:
        """Whether the linear layers are 1x1 convolutions in timm."""
        return self.size in _WITH_CONVOLUTIONS

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the stages."""
        return tuple(self.width * 2**stage for stage in range(4))

    def stages(self, output_stride: int = 32) -> list[StagePlan]:
        """The stages. Strides beyond the output stride become dilations, as in timm."""
        found, reached, dilation, before = [], 4, 1, self.width
        for number, (depth, channels) in enumerate(zip(self.depths, self.channels, strict=True)):
            stride = 1 if number == 0 else 2
            if reached * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reached *= stride
            entry = 1 if dilation <= 2 else 2
            found.append(StagePlan(before, channels, depth, stride, entry, dilation))
            before = channels
        return found

    def specs(self, output_stride: int) -> tuple[FeatureSpec, ...]:
        """The features "stage0" to "stage3": the outputs of the stages. Sizes are rounded down."""
        found, stride = [], 4
        for number, stage in enumerate(self.stages(output_stride)):
            stride *= stage.stride
            found.append(FeatureSpec(f"stage{number}", stage.channels, stride, floor_size(stride)))
        return tuple(found)
