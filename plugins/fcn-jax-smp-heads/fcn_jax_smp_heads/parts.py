"""What the heads share: layers, the last layer, and the PyTorch side.

The heads are decoders of segmentation_models_pytorch (SMP) 0.6, with its names and initial values.
SMP's decoders other than `Unet` need images whose sides are multiples of 32. Here they resize to
the sizes of the features instead of by a factor of two, so that every size fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field

from fcn_jax import nn
from fcn_jax.api import FeatureSpec
from fcn_jax.errors import WeightsError
from fcn_jax.pytorch import Rule, Table, conv, conv_norm, drop, import_torchvision

Dropout = Annotated[float, Field(ge=0, lt=1)]

BINS = (1, 2, 3, 6)
"""The grids of pyramid pooling; Zhao et al. 2016, arXiv:1612.01105."""

INIT: dict[str, Any] = {
    "kernel_init": nn.kaiming_uniform_fan_in,
    "bias_init": nnx.initializers.zeros_init(),
}
"""The initial values of the convolutions in SMP's decoders."""


class ConvReLU(nnx.Module):
    """Convolution with bias, and ReLU: the layer of a decoder without normalization."""

    def __init__(self, in_channels: int, out_channels: int, size: int, **settings: Any) -> None:
        """Draw the parameters. `settings` are those of `nn.Conv`."""
        self.conv = nn.Conv(in_channels, out_channels, size, padding=size // 2, **settings)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, H, W, O]."""
        return nnx.relu(self.conv(x))


def conv_relu(
    in_channels: int, out_channels: int, size: int, *, use_norm: bool = True, **types: Any
) -> nn.ConvNormAct | ConvReLU:
    """SMP's `Conv2dReLU`: convolution, batch normalization if `use_norm`, ReLU."""
    layer: Callable[..., nn.ConvNormAct | ConvReLU] = nn.ConvNormAct if use_norm else ConvReLU
    return layer(in_channels, out_channels, size, **INIT, **types)


def conv_relu_rules(torch: str, jax: str, *, use_norm: bool = True) -> list[Rule]:
    """The rules of a `conv_relu`, which is a Sequential in PyTorch."""
    if use_norm:
        return conv_norm(f"{torch}.0", f"{torch}.1", jax)
    return conv(f"{torch}.0", f"{jax}.conv", bias=True)


class DecoderHead(nnx.Module):
    """A decoder, which a subclass adds, and a convolution to the classes; the logits are resized.

    Attributes:
        score: C -> K, with bias; SMP's `segmentation_head`.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        channels: int,
        num_classes: int,
        size: int,
        **types: Any,
    ) -> None:
        """Draw the parameters of `score`, of that kernel size, as SMP does."""
        self.names = nnx.static(tuple(feature.name for feature in features))
        init = {**INIT, "kernel_init": nn.xavier_uniform}
        self.score = nn.Conv(channels, num_classes, size, padding=size // 2, **init, **types)

    def decode(self, features: list[jax.Array], out_hw: tuple[int, int]) -> jax.Array:
        """Selected features, from shallow to deep -> f[N, h, w, C], for an image of that size."""
        raise NotImplementedError

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        logits = self.score(self.decode([features[name] for name in self.names], out_hw))
        return nn.resize_bilinear(logits, out_hw, align_corners=True)


def resize_like(x: jax.Array, other: jax.Array, *, align_corners: bool = False) -> jax.Array:
    """Resize bilinearly to another feature's size."""
    return nn.resize_bilinear(x, (other.shape[1], other.shape[2]), align_corners=align_corners)


def join(*xs: jax.Array) -> jax.Array:
    """Concatenate channels."""
    return jnp.concatenate(xs, axis=-1)


def tables(*rules: list[Rule]) -> dict[str, Table]:
    """The tables of a decoder, from its rules: in a model of torchvision's kind, and SMP's own."""
    image_classifier = drop("classification_head.*", "SMP's classifier of the whole image")
    table = Table(conv("segmentation_head.0", "score", bias=True), image_classifier)
    table += Table(*rules).under("decoder.", "")
    return {"torchvision": table, "smp": table}


def import_smp() -> Any:
    """Import and return segmentation_models_pytorch.

    Raises:
        WeightsError: it, or torch, is not installed.
    """
    import_torchvision()  # SMP imports it, too
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise WeightsError(
            f"{error}: a comparison of this head with PyTorch needs segmentation_models_pytorch; "
            "pip install segmentation-models-pytorch"
        ) from error
    return segmentation_models_pytorch


def smp_reference(
    make: Callable[[Any], Any],
    channels: int,
    num_classes: int,
    size: int,
    decode: Callable[[Any, list[Any], tuple[int, int]], Any],
) -> Any:
    """A decoder of SMP with its segmentation head, called with features.

    Args:
        make: function from the package `decoders` of SMP to the decoder.
        channels: of the decoder's result.
        num_classes: of the logits.
        size: kernel size of the segmentation head.
        decode: (decoder, features from shallow to deep, image size) -> the decoder's result.
    """
    smp = import_smp()
    import torch

    class Reference(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = make(smp.decoders)
            self.segmentation_head = smp.base.SegmentationHead(channels, num_classes, size)
            smp.base.initialization.initialize_decoder(self.decoder)
            smp.base.initialization.initialize_head(self.segmentation_head)

        def forward(self, *features: Any, out_hw: tuple[int, int]) -> Any:
            logits = self.segmentation_head(decode(self.decoder, list(features), out_hw))
            # `torch.nn.UpsamplingBilinear2d` of SMP's head, but to a size.
            return torch.nn.functional.interpolate(
                logits, size=out_hw, mode="bilinear", align_corners=True
            )

    return Reference()
