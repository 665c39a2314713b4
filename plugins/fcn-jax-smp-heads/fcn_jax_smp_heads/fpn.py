"""FPN: a feature pyramid whose levels are refined, brought to stride 4 and merged.

Kirillov et al. 2019, arXiv:1901.02446; `FPN` of segmentation_models_pytorch (SMP).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
from flax import nnx
from pydantic import PositiveInt

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, Head, TorchBridge, by_stride
from fcn_jax.pytorch import conv, conv_norm
from fcn_jax_smp_heads import parts

GROUPS = 32
"""Groups of the group normalization."""


@dataclasses.dataclass(frozen=True)
class FPNOptions:
    """Options of `fpn`.

    Attributes:
        pyramid_channels: channels of each level of the pyramid.
        segmentation_channels: channels of each level after refinement, a multiple of 32.
        merge_policy: "add" sums the refined levels, "cat" concatenates them.
        dropout: fraction of the merged channels that are set to 0 in train mode.
    """

    pyramid_channels: PositiveInt = 256
    segmentation_channels: PositiveInt = 128
    merge_policy: Literal["add", "cat"] = "add"
    dropout: parts.Dropout = 0.2

    def __post_init__(self) -> None:
        """Reject channels that cannot be divided into groups."""
        if self.segmentation_channels % GROUPS:
            raise ValueError(
                f"segmentation_channels is {self.segmentation_channels}; it must be a multiple of "
                f"{GROUPS}, the number of groups of the group normalization"
            )

    @property
    def merged(self) -> int:
        """Channels of the merged levels."""
        return self.segmentation_channels * (4 if self.merge_policy == "cat" else 1)


class FPNHead(parts.DecoderHead):
    """The FPN decoder, and a 1x1 convolution to the classes at stride 4.

    Attributes:
        p5: 1x1, from the deepest feature to the pyramid's channels; `p4`, `p3`, `p2` of the others.
        seg_blocks: for each level, from deep to shallow, the 3x3 convolutions with group
            normalization and ReLU that refine it; resizing follows each, except for the last level.
        dropout: of the merged levels.
    """

    p2: nn.Conv
    p3: nn.Conv
    p4: nn.Conv
    p5: nn.Conv

    def __init__(
        self,
        options: FPNOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        **types: Any,
    ) -> None:
        """Draw the parameters as SMP does."""
        super().__init__(features, options.merged, num_classes, 1, **types)
        pyramid, inner = options.pyramid_channels, options.segmentation_channels
        for level, feature in enumerate(features, start=2):
            setattr(self, f"p{level}", nn.Conv(feature.channels, pyramid, 1, **parts.INIT, **types))
        self.dropout = nnx.Dropout(options.dropout, broadcast_dims=(1, 2), rngs=types["rngs"])
        types |= {"norm": "group_norm", "norm_groups": GROUPS, **parts.INIT}
        self.seg_blocks = nnx.List(
            nnx.List(
                nn.ConvNormAct(inner if i else pyramid, inner, 3, **types)
                for i in range(max(1, upsamples))
            )
            for upsamples in (3, 2, 1, 0)
        )
        self.add = options.merge_policy == "add"

    def decode(self, features: list[jax.Array], out_hw: tuple[int, int]) -> jax.Array:
        """See `DecoderHead`."""
        c2, c3, c4, c5 = features
        pyramid = [self.p5(c5)]
        for lateral, feature in ((self.p4, c4), (self.p3, c3), (self.p2, c2)):
            size = (feature.shape[1], feature.shape[2])
            pyramid.append(nn.resize_nearest(pyramid[-1], size) + lateral(feature))
        refined = []
        for level, blocks in enumerate(self.seg_blocks):
            y = pyramid[level]
            for i, block in enumerate(blocks, start=level + 1):
                y = block(y)
                if i < len(pyramid):
                    y = parts.resize_like(y, pyramid[i], align_corners=True)
            refined.append(y)
        return self.dropout(sum(refined[1:], refined[0]) if self.add else parts.join(*refined))


def _select(options: FPNOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    return by_stride("head 'fpn'", features, (4, 8, 16, 32))


def _tables(options: FPNOptions) -> Any:
    block = "seg_blocks.{i}.block.{j}.block"
    return parts.tables(
        conv("p5", bias=True),
        conv("p{i}.skip_conv", "p{i}", bias=True),
        conv_norm(f"{block}.0", f"{block}.1", "seg_blocks.{i}.{j}", norm="group_norm"),
    )


def _decode(decoder: Any, features: list[Any], out_hw: tuple[int, int]) -> Any:
    """`FPNDecoder.forward`, which doubles sizes, with resizing to sizes."""
    from torch.nn.functional import interpolate

    pyramid = [decoder.p5(features[-1])]
    for block, skip in zip((decoder.p4, decoder.p3, decoder.p2), features[-2::-1], strict=True):
        pyramid.append(interpolate(pyramid[-1], size=skip.shape[2:]) + block.skip_conv(skip))
    refined = []
    for level, blocks in enumerate(decoder.seg_blocks):
        y = pyramid[level]
        for i, block in enumerate(blocks.block, start=level + 1):
            y = block.block(y)
            if block.upsample:
                size = pyramid[i].shape[2:]
                y = interpolate(y, size=size, mode="bilinear", align_corners=True)
        refined.append(y)
    return decoder.dropout(decoder.merge(refined))


def _reference(options: FPNOptions, features: Sequence[FeatureSpec], num_classes: int) -> Any:
    settings = dataclasses.asdict(options)
    channels = [3, 0, *(feature.channels for feature in features)]
    return parts.smp_reference(
        lambda decoders: decoders.fpn.decoder.FPNDecoder(channels, **settings),
        options.merged,
        num_classes,
        1,
        _decode,
    )


FPN = Head(
    name="fpn",
    summary="FPN of segmentation_models_pytorch: a pyramid of strides 32 to 4, merged at stride 4",
    reference="Kirillov et al. 2019, arXiv:1901.02446; segmentation_models_pytorch.FPN",
    options=FPNOptions,
    select=_select,
    build=FPNHead,
    torch=TorchBridge(tables=_tables, reference=_reference),
)
