"""SegFormer's decoder: a linear layer of each feature, and their fusion at stride 4.

Xie et al. 2021, arXiv:2105.15203; `Segformer` of segmentation_models_pytorch (SMP).
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
from fcn_jax.pytorch import linear


@dataclasses.dataclass(frozen=True)
class SegformerOptions:
    """Options of `segformer`.

    Attributes:
        segmentation_channels: channels of every layer.
    """

    segmentation_channels: PositiveInt = 256


class SegformerHead(parts.DecoderHead):
    """The all-MLP decoder, and a 1x1 convolution to the classes at stride 4.

    As in SMP, it also takes a feature of stride 2, if the backbone has one.

    Attributes:
        mlps: linear layers of the features, from deep to shallow.
        fuse: 1x1, of their resized results, with batch normalization and ReLU.
    """

    def __init__(
        self,
        options: SegformerOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        **types: Any,
    ) -> None:
        """Draw the parameters as SMP does."""
        width = options.segmentation_channels
        super().__init__(features, width, num_classes, 1, **types)
        init = {**parts.INIT, "kernel_init": nn.xavier_uniform}
        self.mlps = nnx.List(
            nn.Linear(feature.channels, width, **init, **types) for feature in reversed(features)
        )
        self.fuse = parts.conv_relu(len(features) * width, width, 1, **types)

    def decode(self, features: list[jax.Array], out_hw: tuple[int, int]) -> jax.Array:
        """See `DecoderHead`."""
        finest = features[-4]  # of stride 4
        mixed = [mlp(x) for mlp, x in zip(self.mlps, reversed(features), strict=True)]
        return self.fuse(parts.join(*(parts.resize_like(x, finest) for x in mixed)))


def _select(options: SegformerOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    return by_stride("head 'segformer'", features, (4, 8, 16, 32), (2,))


def _reference(options: SegformerOptions, features: Sequence[FeatureSpec], num_classes: int) -> Any:
    width = options.segmentation_channels
    channels = [3, *(feature.channels for feature in features)]

    def decode(decoder: Any, maps: list[Any], out_hw: tuple[int, int]) -> Any:
        height, width = maps[-4].shape[2:]
        # SMP computes the size at stride 4 from the image.
        image = maps[0].new_empty(0, 1, 4 * height, 4 * width)
        return decoder([image, *maps])

    return parts.smp_reference(
        lambda decoders: decoders.segformer.decoder.SegformerDecoder(
            channels, segmentation_channels=width
        ),
        width,
        num_classes,
        1,
        decode,
    )


SEGFORMER = Head(
    name="segformer",
    summary="SegFormer's all-MLP decoder, as in segmentation_models_pytorch: a linear layer of "
    "each feature, fused at stride 4",
    reference="Xie et al. 2021, arXiv:2105.15203; segmentation_models_pytorch.Segformer",
    options=SegformerOptions,
    select=_select,
    build=SegformerHead,
    torch=TorchBridge(
        tables=parts.tables(
            linear("mlp_stage.{i}.linear", "mlps.{i}"), parts.conv_relu_rules("fuse_stage", "fuse")
        ),
        reference=_reference,
    ),
)
