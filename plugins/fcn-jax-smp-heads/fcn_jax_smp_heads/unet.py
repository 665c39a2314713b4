"""U-Net: from the deepest feature to the image's size in steps of two, with a skip at each step.

Ronneberger et al. 2015, arXiv:1505.04597; `Unet` of segmentation_models_pytorch (SMP).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import jax
from flax import nnx
from pydantic import Field, PositiveInt

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, Head, TorchBridge, by_stride
from fcn_jax_smp_heads import parts


@dataclasses.dataclass(frozen=True)
class UnetOptions:
    """Options of `unet`.

    Attributes:
        decoder_channels: channels after each step of two, from deep to shallow, 3 to 5 numbers. n
            numbers need features of the strides 4 to 2 ** n; SMP calls n `encoder_depth`.
        use_norm: batch normalization; otherwise the convolutions have a bias.
        center: two convolutions of the deepest feature, which SMP has on VGG only.
    """

    decoder_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=3, max_length=5)] = (
        256,
        128,
        64,
        32,
        16,
    )
    use_norm: bool = True
    center: bool = False


class UnetBlock(nnx.Module):
    """Resizing, concatenation with a skip, two convolutions.

    Attributes:
        conv1: 3x3, with normalization and ReLU; so is `conv2`.
    """

    def __init__(self, in_channels: int, out_channels: int, **settings: Any) -> None:
        """Draw the parameters; `in_channels` are those of the concatenation."""
        self.conv1 = parts.conv_relu(in_channels, out_channels, 3, **settings)
        self.conv2 = parts.conv_relu(out_channels, out_channels, 3, **settings)

    def __call__(self, x: jax.Array, skip: jax.Array | None, size: tuple[int, int]) -> jax.Array:
        """f[N, h, w, C], f[N, *size, S] -> f[N, *size, O]."""
        x = nn.resize_nearest(x, size)
        return self.conv2(self.conv1(x if skip is None else parts.join(x, skip)))


class UnetHead(parts.DecoderHead):
    """The U-Net decoder, and a 3x3 convolution to the classes at the image's size.

    Backbones without a feature of stride 2, such as transformers, get no skip there, as in SMP.

    Attributes:
        center: convolutions of the deepest feature; empty by default.
        blocks: from deep to shallow.
    """

    def __init__(
        self,
        options: UnetOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        **types: Any,
    ) -> None:
        """Draw the parameters as SMP does."""
        super().__init__(features, options.decoder_channels[-1], num_classes, 3, **types)
        types["use_norm"] = options.use_norm
        *skips, deepest = _channels(features)
        widths = (deepest, *options.decoder_channels)
        self.center = nnx.List(
            parts.conv_relu(deepest, deepest, 3, **types) for _ in range(2 if options.center else 0)
        )
        self.blocks = nnx.List(
            UnetBlock(width + skip, out, **types)
            for width, skip, out in zip(widths[:-1], [*skips[::-1], 0], widths[1:], strict=True)
        )

    def decode(self, features: list[jax.Array], out_hw: tuple[int, int]) -> jax.Array:
        """See `DecoderHead`."""
        *skips, x = features
        for layer in self.center:
            x = layer(x)
        for block, skip in zip(self.blocks, reversed(skips), strict=False):
            x = block(x, skip, (skip.shape[1], skip.shape[2]))
        if len(self.blocks) - len(skips) == 2:  # there is no feature of stride 2
            x = self.blocks[-2](x, None, (max(1, out_hw[0] // 2), max(1, out_hw[1] // 2)))
        return self.blocks[-1](x, None, out_hw)


def _channels(features: Sequence[FeatureSpec]) -> list[int]:
    """Channels of the features, with 0 for stride 2 if there is none."""
    return [0] * (features[0].stride > 2) + [feature.channels for feature in features]


def _select(options: UnetOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    depth = len(options.decoder_channels)
    strides = [2**i for i in range(2, depth + 1)]
    return by_stride(f"head 'unet' with {depth} decoder_channels", features, strides, (2,))


def _tables(options: UnetOptions) -> Any:
    norm = options.use_norm
    return parts.tables(
        parts.conv_relu_rules("blocks.{i}.conv{k}", "blocks.{i}.conv{k}", use_norm=norm),
        parts.conv_relu_rules("center.{i}", "center.{i}", use_norm=norm),
    )


def _reference(options: UnetOptions, features: Sequence[FeatureSpec], num_classes: int) -> Any:
    channels = options.decoder_channels

    def decode(decoder: Any, maps: list[Any], out_hw: tuple[int, int]) -> Any:
        batch, (height, width) = maps[0].shape[0], out_hw
        if features[0].stride > 2:
            maps.insert(0, maps[0].new_empty(batch, 0, max(1, height // 2), max(1, width // 2)))
        return decoder([maps[0].new_empty(batch, 0, height, width), *maps])

    def make(decoders: Any) -> Any:
        return decoders.unet.decoder.UnetDecoder(
            (3, *_channels(features)),
            channels,
            len(channels),
            use_norm=options.use_norm,
            add_center_block=options.center,
        )

    return parts.smp_reference(make, channels[-1], num_classes, 3, decode)


UNET = Head(
    name="unet",
    summary="U-Net of segmentation_models_pytorch: features of strides 32 to 2, each resized and "
    "concatenated with the next",
    reference="Ronneberger et al. 2015, arXiv:1505.04597; segmentation_models_pytorch.Unet",
    options=UnetOptions,
    select=_select,
    build=UnetHead,
    torch=TorchBridge(tables=_tables, reference=_reference),
)
