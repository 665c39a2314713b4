"""UPerNet: pyramid pooling of the deepest feature, a feature pyramid, and the fusion of its levels.

Xiao et al. 2018, arXiv:1807.10221; `UPerNet` of segmentation_models_pytorch (SMP), which also
normalizes the features, as Swin and ConvNeXt need it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from fcn_jax_smp_heads import parts
from flax import nnx
from pydantic import PositiveInt

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, Head, TorchBridge, by_stride
from fcn_jax.pytorch import layer_norm


@dataclasses.dataclass(frozen=True)
class UPerNetOptions:
    """Options of `upernet`.

    Attributes:
        decoder_channels: channels of every layer.
        use_norm: batch normalization; otherwise the convolutions have a bias, except for the one
            after pyramid pooling, which always has batch normalization.
    """

    decoder_channels: PositiveInt = 256
    use_norm: bool = True


class UPerNetHead(parts.DecoderHead):
    """The UPerNet decoder, and a 1x1 convolution to the classes at stride 4.

    Attributes:
        feature_norms: layer normalizations of the features, from shallow to deep.
        pooled: 1x1, of the means over each grid of pyramid pooling.
        bottleneck: 3x3, of the deepest feature and the resized results of `pooled`.
        laterals: 1x1, of the other features, from deep to shallow.
        smooths: 3x3, of the levels of the pyramid except the deepest, from deep to shallow.
        fusion: 3x3, of all levels at stride 4.
    """

    def __init__(
        self,
        options: UPerNetOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        **types: Any,
    ) -> None:
        """Draw the parameters as SMP does."""
        width = options.decoder_channels
        super().__init__(features, width, num_classes, 1, **types)
        *others, deepest = (feature.channels for feature in features)
        dtypes = {name: value for name, value in types.items() if name != "rngs"}
        self.feature_norms = nnx.List(
            nn.LayerNorm(feature.channels, eps=1e-6, **dtypes) for feature in features
        )
        joined = deepest + len(parts.BINS) * width
        self.bottleneck = parts.conv_relu(joined, width, 3, **types)
        types["use_norm"] = options.use_norm
        self.pooled = nnx.List(parts.conv_relu(deepest, width, 1, **types) for _ in parts.BINS)
        self.laterals = nnx.List(parts.conv_relu(c, width, 1, **types) for c in others[::-1])
        self.smooths = nnx.List(parts.conv_relu(width, width, 3, **types) for _ in others)
        self.fusion = parts.conv_relu(len(features) * width, width, 3, **types)

    def decode(self, features: list[jax.Array], out_hw: tuple[int, int]) -> jax.Array:
        """See `DecoderHead`."""
        normed = zip(self.feature_norms, features, strict=True)
        *others, x = [norm(feature) for norm, feature in normed]
        means = [
            parts.resize_like(layer(nn.adaptive_average_pool(x, (n, n))), x)
            for layer, n in zip(self.pooled, parts.BINS, strict=True)
        ]
        pyramid = [self.bottleneck(parts.join(x, *means))]
        for lateral, feature in zip(self.laterals, reversed(others), strict=True):
            pyramid.append(parts.resize_like(pyramid[-1], feature) + lateral(feature))
        levels = [layer(y) for layer, y in zip(self.smooths, pyramid[1:], strict=True)]
        levels = [pyramid[0], *levels]
        return self.fusion(parts.join(*(parts.resize_like(y, levels[-1]) for y in levels[::-1])))


def _select(options: UPerNetOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    return by_stride("head 'upernet'", features, (4, 8, 16, 32))


def _tables(options: UPerNetOptions) -> Any:
    norm = options.use_norm
    return parts.tables(
        layer_norm("feature_norms.{i}"),
        parts.conv_relu_rules("psp.blocks.{i}.1", "pooled.{i}", use_norm=norm),
        parts.conv_relu_rules("psp.out_conv", "bottleneck"),
        parts.conv_relu_rules(
            "fpn_lateral_blocks.{i}.conv_norm_relu", "laterals.{i}", use_norm=norm
        ),
        parts.conv_relu_rules("fpn_conv_blocks.{i}", "smooths.{i}", use_norm=norm),
        parts.conv_relu_rules("fusion_block", "fusion", use_norm=norm),
    )


def _reference(options: UPerNetOptions, features: Sequence[FeatureSpec], num_classes: int) -> Any:
    channels = [3, 0, *(feature.channels for feature in features)]

    def make(decoders: Any) -> Any:
        return decoders.upernet.decoder.UPerNetDecoder(
            channels, decoder_channels=options.decoder_channels, use_norm=options.use_norm
        )

    return parts.smp_reference(
        make,
        options.decoder_channels,
        num_classes,
        1,
        # It does not use the features of strides 1 and 2.
        lambda decoder, maps, _: decoder([None, None, *maps]),
    )


UPERNET = Head(
    name="upernet",
    summary="UPerNet of segmentation_models_pytorch: pyramid pooling and a feature pyramid of "
    "strides 32 to 4, fused at stride 4",
    reference="Xiao et al. 2018, arXiv:1807.10221; segmentation_models_pytorch.UPerNet",
    options=UPerNetOptions,
    select=_select,
    build=UPerNetHead,
    torch=TorchBridge(tables=_tables, reference=_reference),
)
