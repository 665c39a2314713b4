"""Heads of fully convolutional networks.

Long, Shelhamer and Darrell 2015, arXiv:1411.4038; in the form of "Dive into Deep Learning", chapter
"Fully Convolutional Networks".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax import nn
from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.plugins.api import FeatureSpec, Head, Model, ModelSpec, TorchBridge
from fcn_jax.pytorch.rules import Table, conv, conv_transpose


@dataclasses.dataclass(frozen=True)
class FCN32sOptions:
    """Options of `fcn32s`.

    Attributes:
        upsampling: "learned", as in the chapter: a kernel for each pair of classes, whose number
            grows with their square; "depthwise": learned too, but each class is upsampled by
            itself, which is what hundreds of classes can afford; or "fixed": bilinear for good and
            without bias, as in the paper.
    """

    upsampling: Literal["learned", "depthwise", "fixed"] = "learned"


class FCN32s(nnx.Module):
    """A 1x1 convolution to the classes, and a transposed convolution from the deepest feature to the image's size.

    For a feature of stride s the transposed convolution has kernel 2s, stride s and padding s/2, so
    that a feature of h rows becomes s h rows; it starts as bilinear interpolation.

    Attributes:
        final_conv: 1x1, C -> K, with bias.
        transpose_conv: 2s x 2s, K -> K, dense or class by class, with bias if it is learned.
    """

    def __init__(
        self,
        feature: FeatureSpec,
        num_classes: int,
        upsampling: str,
        *,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters, as the chapter does: PyTorch's default for the 1x1, bilinear for the transposed convolution."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.feature, self.top = feature.name, feature.offset
        self.final_conv = nn.Conv(feature.channels, num_classes, 1, **types)
        self.transpose_conv = nn.ConvTranspose(
            num_classes,
            num_classes,
            2 * feature.stride,
            stride=feature.stride,
            padding=feature.stride // 2,
            groups=num_classes if upsampling == "depthwise" else 1,
            use_bias=upsampling != "fixed",
            trainable=upsampling != "fixed",
            **types,
        )

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]; what the transposed convolution has more is cropped.

        That is at the bottom and right, and where the backbone pads its input, at the top and left
        too.
        """
        logits = self.transpose_conv(self.final_conv(features[self.feature]))
        return logits[:, self.top : self.top + out_hw[0], self.top : self.top + out_hw[1]]

    def logits_in_blocks(
        self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]
    ) -> SubpixelLogits | None:
        """The same logits in the layout of GPUs and TPUs; None where the kernel is no dense one."""
        logits = self.transpose_conv.blocks(self.final_conv(features[self.feature]))
        return logits and logits.crop(*out_hw, top=self.top, left=self.top)


def _select(options: FCN32sOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    return (features[-1].name,)


def _build(
    options: FCN32sOptions,
    features: Sequence[FeatureSpec],
    *,
    num_classes: int,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> FCN32s:
    return FCN32s(
        features[-1],
        num_classes,
        options.upsampling,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def _tables(options: FCN32sOptions) -> dict[str, Table]:
    table = Table(conv("final_conv", bias=True), conv_transpose("transpose_conv", bias=True))
    pytorch_fcn = Table(
        conv("score_fr", "final_conv", bias=True),
        conv_transpose("upscore", "transpose_conv", bias=True),
    )
    return {"torchvision": table, "d2l": table, "pytorch-fcn": pytorch_fcn}


def _torch_reference(
    options: FCN32sOptions, features: Sequence[FeatureSpec], num_classes: int
) -> Any:
    from collections import OrderedDict

    import torch

    feature, learned = features[-1], options.upsampling != "fixed"
    layers: OrderedDict[str, torch.nn.Module] = OrderedDict(
        final_conv=torch.nn.Conv2d(feature.channels, num_classes, 1),
        transpose_conv=torch.nn.ConvTranspose2d(
            num_classes,
            num_classes,
            2 * feature.stride,
            stride=feature.stride,
            padding=feature.stride // 2,
            groups=num_classes if options.upsampling == "depthwise" else 1,
            bias=learned,
        ),
    )
    layers["transpose_conv"].requires_grad_(learned)

    class Crop(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[..., feature.offset :, feature.offset :]

    if feature.offset:  # the backbone pads its input, so that the map begins before the image
        layers["crop"] = Crop()
    return torch.nn.Sequential(layers)


FCN32S = Head(
    name="fcn32s",
    summary="1x1 convolution and a transposed convolution from the deepest feature (stride 32 on most backbones)",
    reference="Long et al. 2015, arXiv:1411.4038; d2l.ai, chapter Fully Convolutional Networks",
    options=FCN32sOptions,
    select=_select,
    build=_build,
    torch=TorchBridge(tables=_tables, reference=_torch_reference),
    maskable=True,
)

FCN32S_RESNET18 = Model(
    name="fcn32s_resnet18",
    summary="The book chapter's network: ResNet-18 and the fcn32s head, 21 classes",
    reference="d2l.ai, chapter Fully Convolutional Networks",
    spec=ModelSpec("resnet18", "fcn32s", 21),
)
