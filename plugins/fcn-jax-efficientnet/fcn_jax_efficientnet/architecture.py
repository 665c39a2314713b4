"""The dimensions of EfficientNets, from one table of stages and one of widths and depths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, ceil_size

_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel, stride of the first block, expansion and channels: table 1 of the paper."""

FEATURES = {0: "c1", 1: "c2", 2: "c3", 4: "c4", 6: "c5"}
"""Number of the last stage of each stride, and the name of its output."""

SCALES = {
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
    "lite3": (1.2, 1.4),
    "lite4": (1.4, 1.8),
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
}
"""Factors of the channels and of the number of blocks, by the network's size."""


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """One block.

    Attributes:
        in_channels: input channels.
        expanded: channels of the depthwise convolution. If they equal `in_channels`, there is no
            convolution before it.
        channels: output channels.
        kernel: height and width of the depthwise convolution.
        stride: its stride, 1 or 2.
        squeezed: inner channels of the squeeze and excitation; 0 for none.
        dilation: dilation of the depthwise convolution.
        residual: whether the input is added to the output.
    """

    in_channels: int
    expanded: int
    channels: int
    kernel: int
    stride: int
    squeezed: int
    dilation: int
    residual: bool


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An EfficientNet.

    Attributes:
        size: key of `SCALES`. The Lite networks have ReLU6 and no squeeze and excitation; width and
            depth do not scale their first convolution, and depth not their first and last stage.
        tensorflow: whether it is Google's, with padding "SAME" and an epsilon of 1e-3, or timm's
            own, with PyTorch's padding and 1e-5.
    """

    size: str
    tensorflow: bool

    @property
    def name(self) -> str:
        """The name in timm."""
        return f"{'tf_' * self.tensorflow}efficientnet_{self.size}"

    @property
    def lite(self) -> bool:
        """Whether it is one of the Lite networks."""
        return self.size.startswith("lite")

    @property
    def activation(self) -> Callable[[jax.Array], jax.Array]:
        """After all convolutions but the last of a block."""
        return jax.nn.relu6 if self.lite else nn.silu

    @property
    def eps(self) -> float:
        """Of batch normalization."""
        return 1e-3 if self.tensorflow else 1e-5

    @property
    def stem(self) -> int:
        """Channels of the first convolution."""
        return 32 if self.lite else self._channels(32)

    def blocks(self, output_stride: int = 32) -> list[list[BlockPlan]]:
        """The blocks by stage. Strides beyond the output stride become dilations.

        As in timm and torchvision's ResNets, the depthwise convolution that loses its stride keeps
        the dilation of the stage before, and those after it have the new one. The dilated network
        then computes the strided one at more positions, if padding is PyTorch's.
        """
        stages, in_channels, reached, dilation = [], self.stem, 2, 1
        for number, (depth, kernel, stride, expansion, base) in enumerate(_STAGES):
            fixed = self.lite and number in (0, len(_STAGES) - 1)
            channels, stage = self._channels(base), []
            for i in range(depth if fixed else math.ceil(depth * SCALES[self.size][1])):
                own_stride, own_dilation = (stride if i == 0 else 1), dilation
                if reached * own_stride > output_stride:
                    dilation, own_stride = dilation * own_stride, 1
                reached *= own_stride
                stage.append(
                    BlockPlan(
                        in_channels,
                        expansion * in_channels,
                        channels,
                        kernel,
                        own_stride,
                        0 if self.lite else in_channels // 4,
                        own_dilation,
                        residual=own_stride == 1 and in_channels == channels,
                    )
                )
                in_channels = channels
            stages.append(stage)
        return stages

    def specs(self, output_stride: int) -> tuple[FeatureSpec, ...]:
        """The features.

        TensorFlow's padding shifts a feature by up to a pixel per strided layer, depending on the
        image's size. No constant offset describes that, so it is 0.
        """
        stages, found, stride = self.blocks(output_stride), [], 2
        for number, stage in enumerate(stages):
            stride *= stage[0].stride
            if number in FEATURES:
                name = FEATURES[number]
                found.append(FeatureSpec(name, stage[-1].channels, stride, ceil_size(stride)))
        return tuple(found)

    def _channels(self, base: int) -> int:
        """The nearest multiple of 8 that is at least 0.9 times the scaled channels."""
        scaled = base * SCALES[self.size][0]
        nearest = max(8, int(scaled + 4) // 8 * 8)
        return nearest + 8 if nearest < 0.9 * scaled else nearest
