"""The head of FCN-32s.

Long, Shelhamer and Darrell 2015, arXiv:1411.4038, as in "Dive into Deep Learning" (d2l), section
"Fully Convolutional Networks".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fcn_jax import nn
from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.plugins.api import FeatureSpec, Head, Model, ModelSpec, TorchBridge
from fcn_jax.pytorch import Table, conv, conv_transpose


@dataclasses.dataclass(frozen=True)
class FCN32sOptions:
    """Options of `fcn32s`.

    Attributes:
        upsampling: "learned", as in d2l: a kernel for each pair of classes, whose number grows with
            the square of the classes. "depthwise": learned, with a kernel for each class, for
            hundreds of classes. "fixed": bilinear, not trained and without bias, as in the paper.
    """

    upsampling: Literal["learned", "depthwise", "fixed"] = "learned"


class FCN32s(nnx.Module):
    """A 1x1 convolution to the classes, then a transposed convolution to the image's size.

    For a feature of stride s, the transposed convolution has kernel 2s, stride s and padding s/2,
    so that h rows become s h rows. Its initial kernel is bilinear interpolation.

    Attributes:
        final_conv: 1x1, C -> K, with bias.
        transpose_conv: 2s x 2s, K -> K, dense or depthwise, with bias if it is learned.
    """

    def __init__(
        self,
        options: FCN32sOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters: PyTorch's default for the 1x1 convolution, as in d2l."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        feature, learned = features[-1], options.upsampling != "fixed"
        self.feature, self.top = feature.name, feature.offset
        self.final_conv = nn.Conv(feature.channels, num_classes, 1, **types)
        self.transpose_conv = nn.ConvTranspose(
            num_classes,
            num_classes,
            2 * feature.stride,
            stride=feature.stride,
            padding=feature.stride // 2,
            groups=num_classes if options.upsampling == "depthwise" else 1,
            use_bias=learned,
            trainable=learned,
            **types,
        )

    def __call__(
        self, features: Mapping[str, Float[Array, "N _ _ _"]], *, out_hw: tuple[int, int]
    ) -> Float[Array, "N {out_hw[0]} {out_hw[1]} K"]:
        """Features -> logits f[N, out_hw[0], out_hw[1], K].

        Logits outside of the image are cropped: at the bottom and right, and if the backbone pads
        its input, at the top and left.
        """
        logits = self.transpose_conv(self.final_conv(features[self.feature]))
        return logits[:, self.top : self.top + out_hw[0], self.top : self.top + out_hw[1]]

    def _subpixel_logits(
        self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]
    ) -> SubpixelLogits | None:
        """The same logits in the layout of GPUs and TPUs; None if the kernel is not dense."""
        logits = self.transpose_conv.blocks(self.final_conv(features[self.feature]))
        return logits and logits.crop(*out_hw, top=self.top, left=self.top)


_TABLE = Table(conv("final_conv", bias=True), conv_transpose("transpose_conv", bias=True))
_PYTORCH_FCN = Table(
    conv("score_fr", "final_conv", bias=True),
    conv_transpose("upscore", "transpose_conv", bias=True),
)


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

    if feature.offset:  # the logits begin before the image's corner
        layers["crop"] = Crop()
    return torch.nn.Sequential(layers)


FCN32S = Head(
    name="fcn32s",
    summary="1x1 convolution and transposed convolution of the deepest feature (stride 32 on most "
    "backbones)",
    reference="Long et al. 2015, arXiv:1411.4038; d2l.ai, section Fully Convolutional Networks",
    options=FCN32sOptions,
    handles_offset=True,
    build=FCN32s,
    torch=TorchBridge(
        tables={"torchvision": _TABLE, "d2l": _TABLE, "pytorch-fcn": _PYTORCH_FCN},
        reference=_torch_reference,
    ),
)

FCN32S_RESNET18 = Model(
    name="fcn32s_resnet18",
    summary="The model of d2l: ResNet-18 and the fcn32s head, 21 classes",
    reference="d2l.ai, section Fully Convolutional Networks",
    spec=ModelSpec("resnet18", "fcn32s", 21),
)
