"""ResNet, ResNeXt and Wide ResNet of torchvision, as backbones of output stride 32, 16 or 8.

He et al. 2015, arXiv:1512.03385; Xie et al. 2016, arXiv:1611.05431; Zagoruyko and Komodakis 2016,
arXiv:1605.07146; `torchvision/models/resnet.py`. Submodules have torchvision's names. For output
strides 16 and 8, the last one or two stages are dilated instead of strided, as with torchvision's
`replace_stride_with_dilation`, so that weights fit at every output stride.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fcn_jax import nn
from fcn_jax.models.resnet_blocks import BasicBlock, Bottleneck, Stage, conv, stages
from fcn_jax.plugins.api import Backbone, FeatureSpec, TorchBridge, Weights, ceil_size
from fcn_jax.pytorch import Table, conv_norm, drop, import_torchvision


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The dimensions of a ResNet.

    Attributes:
        depths: number of blocks in each of the four stages.
        bottleneck: whether the blocks have three convolutions (bottleneck) or two (basic).
        groups: groups of a bottleneck's 3x3 convolution; torchvision's `groups`, ResNeXt's
            cardinality.
        group_width: channels of one group in the first stage; torchvision's `width_per_group`.
    """

    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of each stage."""
        return (256, 512, 1024, 2048) if self.bottleneck else (64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class ResNetOptions:
    """Options of a ResNet.

    Attributes:
        norm: "group_norm" replaces batch normalization by group normalization of 32 groups, for
            batches of a few images. Weights of the network with batch normalization load; its
            running statistics are dropped.
    """

    norm: Literal["batch_norm", "group_norm"] = "batch_norm"


class ResNet(nnx.Module):
    """A stem and four stages of blocks, without the classifier.

    Attributes:
        conv1: the stem, 7x7, stride 2, 3 -> 64; a max pool of stride 2 follows.
        layer1: the first stage, a list of blocks; `layer2` to `layer4` are the others.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        output_stride: int = 32,
        norm: Literal["batch_norm", "group_norm"] = "batch_norm",
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters. Their shapes do not depend on the output stride: 32, 16 or 8."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        types["norm"] = norm
        block: Callable[..., nnx.Module] = functools.partial(BasicBlock, **types)
        if architecture.bottleneck:
            groups, width = architecture.groups, architecture.group_width
            block = functools.partial(Bottleneck, groups=groups, group_width=width, **types)
        self.conv1 = conv(3, 64, 7, stride=2, **types)
        in_channels = 64
        for i, stage in enumerate(stages(output_stride)):
            blocks = []
            for _ in range(architecture.depths[i]):
                blocks.append(block(in_channels, 64 << i, stage))
                in_channels = architecture.channels[i]
                stage = Stage(1, stage.dilation, stage.dilation)
            setattr(self, f"layer{i + 1}", nnx.List(blocks))

    def __call__(self, x: Float[Array, "N H W C"]) -> dict[str, Float[Array, "N _ _ _"]]:
        """f[N, H, W, C] -> the outputs of the stem and the four stages by name.

        They are f[N, ceil(H / s), ceil(W / s), _], with s = 2, 4, 8, 16, 32 or the output stride.
        """
        x = self.conv1(x)
        features = {"stem": x}
        x = nn.max_pool(x, kernel_size=3, stride=2, padding=1)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for block in getattr(self, name):
                x = nn.call_block(block, x)
            features[name] = x
        return features


def _features(architecture: Architecture, output_stride: int) -> tuple[FeatureSpec, ...]:
    strides = [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    names = ("stem", "layer1", "layer2", "layer3", "layer4")
    return tuple(
        FeatureSpec(name, channels, stride, ceil_size(stride))
        for name, channels, stride in zip(names, (64, *architecture.channels), strides, strict=True)
    )


def _tables(options: ResNetOptions) -> dict[str, Table]:
    layer = functools.partial(conv_norm, norm=options.norm)
    blocks = Table(
        layer("{b}.conv{k}", "{b}.bn{k}", "{b}.conv{k}"),
        layer("{b}.downsample.0", "{b}.downsample.1", "{b}.downsample"),
    )
    dropped = []
    if options.norm == "group_norm":
        reason = "statistics of batch normalization, which group normalization does not have"
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        dropped = [drop(f"*.{name}", reason) for name in statistics]
    torchvision = Table(
        layer("conv1", "bn1", "conv1"),
        blocks.under("layer{s}.", "layer{s}.").rules,
        drop("fc.*", "the ImageNet classifier, which a segmentation model does not have"),
        *dropped,
    )
    return {
        "torchvision": torchvision,
        # d2l keeps the children of torchvision's network in a Sequential, which names them by
        # position: 0 conv1, 1 bn1, 2 relu, 3 maxpool, 4 to 7 the stages.
        "d2l": Table(
            layer("0", "1", "conv1"),
            *(blocks.under(f"{stage + 3}.", f"layer{stage}.").rules for stage in (1, 2, 3, 4)),
            *dropped,
        ),
        # The encoder of a model of segmentation_models_pytorch.
        "smp": torchvision.under("encoder.", ""),
    }


def _torch_reference(
    name: str, architecture: Architecture, options: ResNetOptions, output_stride: int
) -> Any:
    """The network of that name in torchvision, with random weights.

    torchvision does not dilate basic blocks, so they are dilated after the network is built.
    """
    plan = stages(output_stride)
    dilate = [stage.dilation > stage.first_dilation for stage in plan[1:]]
    settings: dict[str, Any] = {}
    if architecture.bottleneck:
        settings["replace_stride_with_dilation"] = dilate
    if options.norm == "group_norm":
        import torch

        settings["norm_layer"] = functools.partial(torch.nn.GroupNorm, 32)
    network = getattr(import_torchvision().models, name)(weights=None, **settings)
    network.stem = network.relu  # the name of its output among the features
    for i, stage in enumerate(plan, start=1):
        if architecture.bottleneck or stage.dilation == 1:
            continue
        blocks = getattr(network, f"layer{i}")
        blocks[0].conv1.stride = blocks[0].downsample[0].stride = (stage.stride, stage.stride)
        for layer in (layer for block in blocks for layer in (block.conv1, block.conv2)):
            layer.dilation = layer.padding = (stage.dilation, stage.dilation)
        first = blocks[0].conv1
        first.dilation = first.padding = (stage.first_dilation, stage.first_dilation)
    return network


_RESNET = "He et al. 2015, arXiv:1512.03385"
_RESNEXT = "Xie et al. 2016, arXiv:1611.05431"
_WIDE = "Zagoruyko and Komodakis 2016, arXiv:1605.07146"


def _backbone(
    name: str,
    title: str,
    architecture: Architecture,
    *,
    paper: str = _RESNET,
    millions: float,
    weights: Mapping[str, tuple[str, float]],
) -> Backbone:
    """The descriptor of a ResNet.

    Args:
        name: name of the function in `torchvision.models`, and in the names of the weight files.
        title: name for readers.
        architecture: its dimensions.
        paper: where it was published.
        millions: number of parameters without the classifier, in millions.
        weights: by torchvision's name: the digits in the file's name, and the top-1 accuracy on
            ImageNet in percent.
    """
    return Backbone(
        name=name,
        summary=f"{title} of torchvision; strides 2 to 32, 16 or 8, 64 to "
        f"{architecture.channels[-1]} channels, {millions} M parameters",
        reference=f"{paper}; torchvision.models.{name}",
        output_strides=(32, 16, 8),
        features=lambda options, output_stride: _features(architecture, output_stride),
        build=lambda options, **settings: ResNet(architecture, norm=options.norm, **settings),
        options=ResNetOptions,
        torch=TorchBridge(
            tables=_tables,
            reference=lambda options, output_stride: _torch_reference(
                name, architecture, options, output_stride
            ),
            weights={
                key: Weights.torchvision(
                    f"{name}-{digits}", f"ImageNet-1k, top-1 accuracy {accuracy}"
                )
                for key, (digits, accuracy) in weights.items()
            },
        ),
    )


RESNET18 = _backbone(
    "resnet18",
    "ResNet-18",
    Architecture((2, 2, 2, 2), bottleneck=False),
    millions=11.2,
    weights={"IMAGENET1K_V1": ("f37072fd", 69.758)},
)
RESNET34 = _backbone(
    "resnet34",
    "ResNet-34",
    Architecture((3, 4, 6, 3), bottleneck=False),
    millions=21.3,
    weights={"IMAGENET1K_V1": ("b627a593", 73.314)},
)
RESNET50 = _backbone(
    "resnet50",
    "ResNet-50",
    Architecture((3, 4, 6, 3)),
    millions=23.5,
    weights={"IMAGENET1K_V1": ("0676ba61", 76.13), "IMAGENET1K_V2": ("11ad3fa6", 80.858)},
)
RESNET101 = _backbone(
    "resnet101",
    "ResNet-101",
    Architecture((3, 4, 23, 3)),
    millions=42.5,
    weights={"IMAGENET1K_V1": ("63fe2227", 77.374), "IMAGENET1K_V2": ("cd907fc2", 81.886)},
)
RESNET152 = _backbone(
    "resnet152",
    "ResNet-152",
    Architecture((3, 8, 36, 3)),
    millions=58.1,
    weights={"IMAGENET1K_V1": ("394f9c45", 78.312), "IMAGENET1K_V2": ("f82ba261", 82.284)},
)
RESNEXT50_32X4D = _backbone(
    "resnext50_32x4d",
    "ResNeXt-50 32x4d",
    Architecture((3, 4, 6, 3), groups=32, group_width=4),
    paper=_RESNEXT,
    millions=23.0,
    weights={"IMAGENET1K_V1": ("7cdf4587", 77.618), "IMAGENET1K_V2": ("1a0047aa", 81.198)},
)
RESNEXT101_32X8D = _backbone(
    "resnext101_32x8d",
    "ResNeXt-101 32x8d",
    Architecture((3, 4, 23, 3), groups=32, group_width=8),
    paper=_RESNEXT,
    millions=86.7,
    weights={"IMAGENET1K_V1": ("8ba56ff5", 79.312), "IMAGENET1K_V2": ("110c445d", 82.834)},
)
RESNEXT101_64X4D = _backbone(
    "resnext101_64x4d",
    "ResNeXt-101 64x4d",
    Architecture((3, 4, 23, 3), groups=64, group_width=4),
    paper=_RESNEXT,
    millions=81.4,
    weights={"IMAGENET1K_V1": ("173b62eb", 83.246)},
)
WIDE_RESNET50_2 = _backbone(
    "wide_resnet50_2",
    "Wide ResNet-50-2",
    Architecture((3, 4, 6, 3), group_width=128),
    paper=_WIDE,
    millions=66.8,
    weights={"IMAGENET1K_V1": ("95faca4d", 78.468), "IMAGENET1K_V2": ("9ba9bcbe", 81.602)},
)
WIDE_RESNET101_2 = _backbone(
    "wide_resnet101_2",
    "Wide ResNet-101-2",
    Architecture((3, 4, 23, 3), group_width=128),
    paper=_WIDE,
    millions=124.8,
    weights={"IMAGENET1K_V1": ("32ee1156", 78.848), "IMAGENET1K_V2": ("d733dc28", 82.51)},
)
