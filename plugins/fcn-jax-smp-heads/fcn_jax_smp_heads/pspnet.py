"""PSPNet: a feature together with its means over grids of 1, 4, 9 and 36 parts of the image.

Zhao et al. 2016, arXiv:1612.01105; `PSPNet` of segmentation_models_pytorch (SMP).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from pydantic import PositiveInt

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, Head, TorchBridge, by_stride
from fcn_jax_smp_heads import parts


@dataclasses.dataclass(frozen=True)
class PSPNetOptions:
    """Options of `pspnet`.

    Attributes:
        stride: stride of the feature; the deepest one of that stride counts. None takes the deepest
            of all. SMP's `encoder_depth` n is stride 2 ** n; its default, 3, is stride 8.
        out_channels: channels after the pyramid.
        use_norm: batch normalization; otherwise the convolutions have a bias. The mean over the
            whole image is never normalized.
        dropout: fraction of those channels that are set to 0 in train mode.
    """

    stride: PositiveInt | None = None
    out_channels: PositiveInt = 512
    use_norm: bool = True
    dropout: parts.Dropout = 0.2


class PSPNetHead(parts.DecoderHead):
    """Pyramid pooling, a 1x1 convolution, and a 3x3 convolution to the classes.

    Attributes:
        blocks: 1x1, C -> C / 4, of the means over each grid.
        conv: 1x1, of the feature and the resized results of the blocks.
        dropout: of the result of `conv`.
    """

    def __init__(
        self,
        options: PSPNetOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        **types: Any,
    ) -> None:
        """Draw the parameters as SMP does."""
        super().__init__(features, options.out_channels, num_classes, 3, **types)
        channels, norm = features[-1].channels, options.use_norm
        inner = channels // len(parts.BINS)
        self.blocks = nnx.List(
            parts.conv_relu(channels, inner, 1, use_norm=norm and bins > 1, **types)
            for bins in parts.BINS
        )
        joined = channels + len(parts.BINS) * inner
        self.conv = parts.conv_relu(joined, options.out_channels, 1, use_norm=norm, **types)
        self.dropout = nnx.Dropout(options.dropout, broadcast_dims=(1, 2), rngs=types["rngs"])

    def decode(self, features: list[jax.Array], out_hw: tuple[int, int]) -> jax.Array:
        """See `DecoderHead`."""
        (x,) = features
        means = [
            parts.resize_like(block(nn.adaptive_average_pool(x, (n, n))), x, align_corners=True)
            for block, n in zip(self.blocks, parts.BINS, strict=True)
        ]
        return self.dropout(self.conv(parts.join(*means, x)))


def _select(options: PSPNetOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    return by_stride("head 'pspnet'", features, (options.stride or features[-1].stride,))


def _tables(options: PSPNetOptions) -> Any:
    norm = options.use_norm
    return parts.tables(
        parts.conv_relu_rules("psp.blocks.0.pool.1", "blocks.0", use_norm=False),
        parts.conv_relu_rules("psp.blocks.{i}.pool.1", "blocks.{i}", use_norm=norm),
        parts.conv_relu_rules("conv", "conv", use_norm=norm),
    )


def _reference(options: PSPNetOptions, features: Sequence[FeatureSpec], num_classes: int) -> Any:
    def make(decoders: Any) -> Any:
        return decoders.pspnet.decoder.PSPDecoder(
            [features[-1].channels], options.use_norm, options.out_channels, options.dropout
        )

    return parts.smp_reference(
        make, options.out_channels, num_classes, 3, lambda decoder, maps, _: decoder(maps)
    )


PSPNET = Head(
    name="pspnet",
    summary="PSPNet of segmentation_models_pytorch: one feature with its means over 1, 4, 9 and 36 "
    "parts of the image",
    reference="Zhao et al. 2016, arXiv:1612.01105; segmentation_models_pytorch.PSPNet",
    options=PSPNetOptions,
    select=_select,
    build=PSPNetHead,
    torch=TorchBridge(tables=_tables, reference=_reference),
)
