"""FCN-16s and FCN-8s: the scores of shallower features are added while upsampling.

Long, Shelhamer and Darrell 2015, arXiv:1411.4038, section 4.2. In the paper, the scores of the
deepest feature are upsampled twofold and added to those of pool4, then once more to those of pool3;
the last upsampling is by 16 or 8. Here "16s" means one skip and "8s" two, from the features of half
and a quarter of the deepest stride. On a backbone of stride 32 these are the paper's. If several
features have the same stride, as in a dilated backbone, the deepest of them is used.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fcn_jax import nn
from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import FeatureSpec, Head, TorchBridge
from fcn_jax.pytorch import Table, conv, conv_transpose, drop

AT_ONCE_SCALES = (0.01, 0.0001)
"""Factors of the first and second skip's features in the at-once form: `voc-fcn8s-atonce`."""


@dataclasses.dataclass(frozen=True)
class SkipOptions:
    """Options of `fcn16s` and `fcn8s`.

    Attributes:
        at_once: whether all skips are trained from the start, with their features scaled by 0.01
            and 0.0001 so that no skip dominates. Otherwise train in stages: `fcn32s` first, then
            `fcn16s` from its weights, then `fcn8s` from those.
        upsampling: "learned": all transposed convolutions are trained and the last has a bias, as
            in d2l's `fcn32s`. "fixed_last": the last is bilinear, not trained and without bias, as
            in section 4.3 of the paper. "fixed": all are bilinear and not trained, as in the
            networks that the authors published.
    """

    at_once: bool = False
    upsampling: Literal["learned", "fixed_last", "fixed"] = "learned"


class FCNSkip(nnx.Module):
    """Scores of the deepest feature, upsampled twofold and added to those of the next shallower.

    This is done once for each skip. Then the scores are upsampled to the image's size. The scores
    of the skips start at zero, so that a network trained in stages starts as the previous stage.

    Attributes:
        final_conv: 1x1, C -> K, with bias, of the deepest feature, as in `fcn32s`.
        skip_convs: 1x1, C -> K, with bias, of the skips' features, from deep to shallow.
        up_convs: 4x4, K -> K, stride 2, without bias; initially bilinear.
        transpose_conv: 2s x 2s, K -> K, where s is the stride of the shallowest skip, with bias if
            it is learned; initially bilinear.
    """

    def __init__(
        self,
        options: SkipOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters; each feature has half the stride of the next."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        *skips, deepest = features
        skips.reverse()
        self.deepest = deepest.name
        self.skips = nnx.static(tuple(skip.name for skip in skips))
        scales = AT_ONCE_SCALES if options.at_once else (1.0, 1.0)
        self.scales = nnx.static(scales[: len(skips)])
        fusions, self.top = crops(deepest, skips)
        self.fusions = nnx.static(fusions)
        self.final_conv = nn.Conv(deepest.channels, num_classes, 1, **types)
        zeros = nnx.initializers.zeros_init()
        self.skip_convs = nnx.List(
            nn.Conv(skip.channels, num_classes, 1, kernel_init=zeros, bias_init=zeros, **types)
            for skip in skips
        )
        learned, last_learned = options.upsampling != "fixed", options.upsampling == "learned"
        self.up_convs = nnx.List(
            nn.ConvTranspose(
                num_classes, num_classes, 4, stride=2, use_bias=False, trainable=learned, **types
            )
            for _ in skips
        )
        stride = skips[-1].stride
        self.transpose_conv = nn.ConvTranspose(
            num_classes,
            num_classes,
            2 * stride,
            stride=stride,
            use_bias=last_learned,
            trainable=last_learned,
            **types,
        )

    def __call__(
        self, features: Mapping[str, Float[Array, "N _ _ _"]], *, out_hw: tuple[int, int]
    ) -> Float[Array, "N _ _ K"]:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        scores = self.final_conv(features[self.deepest])
        for name, scale, (of_up, of_skip), skip_conv, up_conv in zip(
            self.skips, self.scales, self.fusions, self.skip_convs, self.up_convs, strict=True
        ):
            up = up_conv(scores)[:, of_up:, of_up:]
            skip = skip_conv(features[name] * scale)[:, of_skip:, of_skip:]
            rows, cols = (min(up.shape[axis], skip.shape[axis]) for axis in (1, 2))
            scores = up[:, :rows, :cols] + skip[:, :rows, :cols]
        logits = self.transpose_conv(scores)
        return logits[:, self.top : self.top + out_hw[0], self.top : self.top + out_hw[1]]


def crops(
    deepest: FeatureSpec, skips: Sequence[FeatureSpec]
) -> tuple[tuple[tuple[int, int], ...], int]:
    """Pixels to crop at the top and left, so that the scores align with each other and the image.

    A transposed convolution of kernel 2s, stride s and no padding begins s/2 pixels before the
    pixel that it starts from.

    Args:
        deepest: the feature that is upsampled first.
        skips: the others, from deep to shallow.

    Returns:
        For each skip, the crop of the upsampled scores and of the skip's scores, one of which is 0;
        and the crop of the logits.

    Raises:
        ConfigError: two features do not begin a whole number of pixels apart.
    """
    found = []
    offset = deepest.offset  # of the scores so far
    for skip in skips:
        ahead, rest = divmod(offset + skip.stride - skip.offset, skip.stride)
        if rest:
            raise ConfigError(
                f"feature '{skip.name}' begins {skip.offset} pixels before the image and the "
                f"scores to add begin {offset} pixels before it; the difference must be a multiple "
                f"of {skip.stride} pixels"
            )
        found.append((max(ahead, 0), max(-ahead, 0)))
        offset = min(offset + skip.stride, skip.offset)
    return tuple(found), offset + [deepest, *skips][-1].stride // 2


def _select(
    head: str, count: int, options: SkipOptions, features: Sequence[FeatureSpec]
) -> tuple[str, ...]:
    """The features of a head with `count` skips, from shallow to deep."""
    deepest = features[-1]
    by_stride: dict[float, FeatureSpec] = {feature.stride: feature for feature in features}
    strides = [deepest.stride / 2**number for number in range(1, count + 1)]
    if not by_stride.keys() >= set(strides):
        needed = " and ".join(f"{stride:g}" for stride in reversed(strides))
        offered = ", ".join(f"{feature.name} ({feature.stride})" for feature in features)
        raise ConfigError(
            f"head '{head}' needs features of stride {needed} in addition to the deepest, of "
            f"stride {deepest.stride}; the backbone offers {offered}. Use a larger output stride, "
            "or a head with fewer skips"
        )
    skips = [by_stride[stride] for stride in strides]
    crops(deepest, skips)  # raises if they cannot be aligned
    return tuple(feature.name for feature in (*reversed(skips), deepest))


def _torch_reference(
    options: SkipOptions, features: Sequence[FeatureSpec], num_classes: int
) -> Any:
    import torch

    *skips, deepest = features
    skips.reverse()
    fusions, top = crops(deepest, skips)

    class Reference(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.final_conv = torch.nn.Conv2d(deepest.channels, num_classes, 1)
            self.skip_convs = torch.nn.ModuleList(
                torch.nn.Conv2d(skip.channels, num_classes, 1) for skip in skips
            )
            self.up_convs = torch.nn.ModuleList(
                torch.nn.ConvTranspose2d(num_classes, num_classes, 4, stride=2, bias=False)
                for _ in skips
            )
            self.up_convs.requires_grad_(options.upsampling != "fixed")
            stride, learned = skips[-1].stride, options.upsampling == "learned"
            self.transpose_conv = torch.nn.ConvTranspose2d(
                num_classes, num_classes, 2 * stride, stride=stride, bias=learned
            )
            self.transpose_conv.requires_grad_(learned)

        def forward(self, *given: Any) -> Any:
            *shallow, deep = given
            scores = self.final_conv(deep)
            for number, feature in enumerate(reversed(shallow)):
                scale = AT_ONCE_SCALES[number] if options.at_once else 1.0
                of_up, of_skip = fusions[number]
                up = self.up_convs[number](scores)[..., of_up:, of_up:]
                skip = self.skip_convs[number](feature * scale)[..., of_skip:, of_skip:]
                rows, cols = min(up.shape[2], skip.shape[2]), min(up.shape[3], skip.shape[3])
                scores = up[..., :rows, :cols] + skip[..., :rows, :cols]
            return self.transpose_conv(scores)[..., top:, top:]

    return Reference()


def _tables(count: int) -> dict[str, Table]:
    table = Table(
        conv("final_conv", bias=True),
        conv("skip_convs.{i}", bias=True),
        conv_transpose("up_convs.{i}"),
        conv_transpose("transpose_conv", bias=True),
    )
    # wkentaro/pytorch-fcn names a layer by its input or by its factor. Weights of the network with
    # one skip less start this one.
    last, before = ("upscore16", "upscore") if count == 1 else ("upscore8", "upscore16")
    skips = (("score_pool4", "upscore2"), ("score_pool3", "upscore_pool4"))[:count]
    pytorch_fcn = Table(
        conv("score_fr", "final_conv", bias=True),
        *(conv(score, f"skip_convs.{i}", bias=True) for i, (score, _) in enumerate(skips)),
        *(conv_transpose(up, f"up_convs.{i}") for i, (_, up) in enumerate(skips)),
        conv_transpose(last, "transpose_conv", bias=True),
        drop(f"{before}.weight", "the last upsampling of the network with one skip less"),
    )
    return {"torchvision": table, "pytorch-fcn": pytorch_fcn}


def _head(name: str, count: int, summary: str) -> Head:
    return Head(
        name=name,
        summary=summary,
        reference="Long et al. 2015, arXiv:1411.4038, section 4.2",
        options=SkipOptions,
        select=functools.partial(_select, name, count),
        handles_offset=True,
        build=FCNSkip,
        torch=TorchBridge(tables=_tables(count), reference=_torch_reference),
    )


FCN16S = _head(
    "fcn16s",
    1,
    "fcn32s with a skip from the feature of half the deepest stride (16 on most backbones)",
)
FCN8S = _head(
    "fcn8s",
    2,
    "fcn32s with skips from the features of half and a quarter of the deepest stride (16 and 8)",
)
