"""FCN-16s and FCN-8s: scores of shallower features are added on the way up.

Long, Shelhamer and Darrell 2015, arXiv:1411.4038, section 4.2. There the scores of pool4, and of
pool3, are fused with those of the deepest feature, upsampled twofold each time; the last upsampling
is eightfold or sixteenfold. Here "16s" and "8s" mean one skip and two, from the features of half
the deepest stride and of a quarter: on a backbone of stride 32 those are the paper's. Where several
features share a stride, as in a dilated backbone, the deepest of them is taken.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax import nn
from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import FeatureSpec, Head, TorchBridge
from fcn_jax.pytorch.rules import Table, conv, conv_transpose, drop

AT_ONCE_SCALES = (0.01, 0.0001)
"""What the at-once form multiplies the features of the first and of the second skip by: `voc-fcn8s-atonce` of the authors' repository."""


@dataclasses.dataclass(frozen=True)
class SkipOptions:
    """Options of `fcn16s` and `fcn8s`.

    Attributes:
        at_once: train all skips from the start, their features scaled down (0.01, then 0.0001) so
            that none drowns the others. Otherwise the staged form: train `fcn32s` first, then start
            `fcn16s` from it, then `fcn8s` from that.
        upsampling: "learned": every transposed convolution is, and the last has a bias, as in the
            chapter's `fcn32s`. "fixed_last": the last is bilinear for good and without bias, the
            twofold ones are learned, as section 4.3 of the paper has it. "fixed": all are bilinear
            for good, as in the networks that its authors published.
    """

    at_once: bool = False
    upsampling: Literal["learned", "fixed_last", "fixed"] = "learned"


class FCNSkip(nnx.Module):
    """Scores of the deepest feature, upsampled twofold and added to those of the next shallower one, once or twice; then upsampled whole.

    The scores of the skips start at zero, so that a network in the staged form starts as what it
    was trained as before.

    Attributes:
        final_conv: 1x1, C -> K, with bias, of the deepest feature, as in `fcn32s`.
        skip_convs: 1x1, C -> K, with bias, of the skips' features, deep to shallow.
        up_convs: 4x4, K -> K, stride 2, without bias; bilinear at first.
        transpose_conv: 2s x 2s, K -> K, where s is the stride of the shallowest skip, with bias if
            it is learned; bilinear at first.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        num_classes: int,
        options: SkipOptions,
        *,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters; `features` go from shallow to deep, each of half the stride of the next."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        *skips, deepest = features
        skips.reverse()
        self.deepest = deepest.name
        self.skips = nnx.static(tuple(skip.name for skip in skips))
        self.scales = nnx.static(
            AT_ONCE_SCALES[: len(skips)] if options.at_once else (1.0,) * len(skips)
        )
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

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        scores = self.final_conv(features[self.deepest])
        for name, scale, (of_up, of_skip), skip_conv, up_conv in zip(
            self.skips, self.scales, self.fusions, self.skip_convs, self.up_convs, strict=True
        ):
            up = up_conv(scores)[:, of_up:, of_up:]
            skip = skip_conv(features[name] * scale if scale != 1 else features[name])[
                :, of_skip:, of_skip:
            ]
            rows, cols = (min(up.shape[axis], skip.shape[axis]) for axis in (1, 2))
            scores = up[:, :rows, :cols] + skip[:, :rows, :cols]
        return self.transpose_conv(scores)[
            :, self.top : self.top + out_hw[0], self.top : self.top + out_hw[1]
        ]


def crops(
    deepest: FeatureSpec, skips: Sequence[FeatureSpec]
) -> tuple[tuple[tuple[int, int], ...], int]:
    """Where the maps line up with each other and with the image: pixels to cut off at the top and left.

    A transposed convolution of kernel 2s, stride s and no padding begins s/2 pixels before the
    pixel it starts from.

    Args:
        deepest: the feature that is upsampled first.
        skips: the others, deep to shallow; none in FCN-32s.

    Returns:
        For each skip, what is cut off the upsampled scores and off the skip's, one of them 0; and
        what is cut off the logits.

    Raises:
        ConfigError: the features' offsets are not whole pixels of each other apart.
    """
    found = []
    offset = deepest.offset  # input pixels before the image in the map at hand
    for skip in skips:
        ahead, rest = divmod(offset + skip.stride - skip.offset, skip.stride)
        if rest:
            raise ConfigError(
                f"feature '{skip.name}' begins {skip.offset} pixels before the image and the scores to be added {offset}, "
                f"which are no whole pixels of {skip.stride} apart"
            )
        found.append((max(ahead, 0), max(-ahead, 0)))
        offset = min(offset + skip.stride, skip.offset)
    return tuple(found), offset + [deepest, *skips][-1].stride // 2


def _skips(count: int, head: str, features: Sequence[FeatureSpec]) -> tuple[FeatureSpec, ...]:
    """The features that a head of so many skips takes, shallow to deep; of those that share a stride the deepest."""
    deepest = features[-1]
    by_stride = {feature.stride: feature for feature in features}
    wanted = [
        deepest.stride // 2**number
        for number in range(count, 0, -1)
        if deepest.stride % 2**number == 0
    ]
    if len(wanted) < count or any(stride not in by_stride for stride in wanted):
        needed = " and ".join(f"{deepest.stride / 2**number:g}" for number in range(count, 0, -1))
        offered = ", ".join(f"{feature.name} ({feature.stride})" for feature in features)
        raise ConfigError(
            f"head '{head}' needs features of stride {needed} beside the deepest, of stride {deepest.stride}; the backbone offers "
            f"{offered}. Take a larger output stride, or a head with fewer skips"
        )
    return (*(by_stride[stride] for stride in wanted), deepest)


def _torch_reference(
    count: int, options: SkipOptions, features: Sequence[FeatureSpec], num_classes: int
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


def _tables(count: int, options: SkipOptions) -> dict[str, Table]:
    table = Table(
        conv("final_conv", bias=True),
        conv("skip_convs.{i}", bias=True),
        conv_transpose("up_convs.{i}"),
        conv_transpose("transpose_conv", bias=True),
    )
    # wkentaro/pytorch-fcn calls a layer by what it upsamples, or by how far. Weights of the network
    # with one skip less start this one.
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
    def select(options: SkipOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
        *skips, deepest = _skips(count, name, features)
        crops(deepest, skips[::-1])
        return (*(skip.name for skip in skips), deepest.name)

    def build(
        options: SkipOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> FCNSkip:
        return FCNSkip(
            features, num_classes, options, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    return Head(
        name=name,
        summary=summary,
        reference="Long et al. 2015, arXiv:1411.4038, section 4.2",
        options=SkipOptions,
        select=select,
        build=build,
        torch=TorchBridge(
            tables=functools.partial(_tables, count),
            reference=functools.partial(_torch_reference, count),
        ),
        maskable=True,
    )


FCN16S = _head(
    "fcn16s",
    1,
    "fcn32s with a skip from the feature of half the deepest stride (16 on most backbones)",
)
FCN8S = _head(
    "fcn8s",
    2,
    "fcn32s with skips from the features of half and of a quarter of the deepest stride (16 and 8)",
)
