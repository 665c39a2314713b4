"""ResNet as torchvision defines it, as a trunk for segmentation.

He et al. 2015, arXiv:1512.03385; `torchvision/models/resnet.py`. Submodules carry torchvision's names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax import nn
from fcn_jax.api import Backbone, FeatureSpec, NoOptions, TorchBridge, Weights
from fcn_jax.convert.rules import Rule, Table, batch_norm, conv, drop

_WIDTHS = (64, 128, 256, 512)


class ConvBatchNorm(nnx.Module):
    """A convolution without bias, and the batch normalisation after it: the shortcut of a block that changes size."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> None:
        """Draw the parameters of a 1x1 convolution."""
        self.conv = nn.Conv(
            channels_in,
            channels_out,
            1,
            stride=stride,
            use_bias=False,
            kernel_init=nn.kaiming_normal_fan_out,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.bn = nn.BatchNorm(channels_out, dtype=dtype, param_dtype=param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, ceil(H / stride), ceil(W / stride), O]."""
        return self.bn(self.conv(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and ResNet-34."""

    def __init__(self, channels_in: int, channels: int, *, stride: int, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> None:
        """Draw the parameters. The stride sits on the first convolution and on the shortcut."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        settings: dict[str, Any] = {
            "padding": 1,
            "use_bias": False,
            "kernel_init": nn.kaiming_normal_fan_out,
            "rngs": rngs,
            **types,
        }
        self.conv1 = nn.Conv(channels_in, channels, 3, stride=stride, **settings)
        self.bn1 = nn.BatchNorm(channels, **types)
        self.conv2 = nn.Conv(channels, channels, 3, **settings)
        self.bn2 = nn.BatchNorm(channels, **types)
        changes = stride != 1 or channels_in != channels
        self.downsample = ConvBatchNorm(channels_in, channels, stride=stride, rngs=rngs, **types) if changes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, ceil(H / stride), ceil(W / stride), O]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet(nnx.Module):
    """A stem and four stages of blocks, without the classifier."""

    def __init__(self, blocks: tuple[int, int, int, int], *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> None:
        """Draw the parameters; `blocks` is the number of blocks in each stage."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.conv1 = nn.Conv(
            3, 64, 7, stride=2, padding=3, use_bias=False, kernel_init=nn.kaiming_normal_fan_out, rngs=rngs, **types
        )
        self.bn1 = nn.BatchNorm(64, **types)
        channels_in = 64
        for stage, (depth, channels) in enumerate(zip(blocks, _WIDTHS, strict=True), start=1):
            stage_blocks = []
            for block in range(depth):
                stride = 2 if stage > 1 and block == 0 else 1
                stage_blocks.append(BasicBlock(channels_in, channels, stride=stride, rngs=rngs, **types))
                channels_in = channels
            setattr(self, f"layer{stage}", nnx.List(stage_blocks))

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> the outputs of the four stages, f[N, ceil(H / s), ceil(W / s), C] with s = 4, 8, 16, 32."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nn.max_pool(x, 3, 2, 1)
        features = {}
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for block in getattr(self, name):
                x = block(x)
            features[name] = x
        return features


@functools.cache
def _ceil_div(stride: int) -> Callable[[int], int]:
    # Cached, so that the specs of two equal networks are equal, and jit knows them as one.
    return lambda size: -(-size // stride)


def _features(options: NoOptions, output_stride: int) -> tuple[FeatureSpec, ...]:
    return tuple(
        FeatureSpec(f"layer{stage}", channels, stride, _ceil_div(stride))
        for stage, (channels, stride) in enumerate(zip(_WIDTHS, (4, 8, 16, 32), strict=True), start=1)
    )


_CLASSIFIER = "the classifier of ImageNet's classes, which a segmentation network does not have"


def _tables(options: NoOptions) -> dict[str, Table]:
    torchvision = Table(
        conv("conv1"),
        batch_norm("bn1"),
        conv("layer{s}.{b}.conv{k}"),
        batch_norm("layer{s}.{b}.bn{k}"),
        conv("layer{s}.{b}.downsample.0", "layer{s}.{b}.downsample.conv"),
        batch_norm("layer{s}.{b}.downsample.1", "layer{s}.{b}.downsample.bn"),
        drop("fc.*", _CLASSIFIER),
    )
    # The chapter keeps the children of torchvision's network in a Sequential, which names them by position: 0 conv1, 1 bn1, 2 relu,
    # 3 maxpool, 4 to 7 the stages.
    stages: list[Rule] = []
    for stage in (1, 2, 3, 4):
        sequential, name = f"{stage + 3}", f"layer{stage}"
        stages += conv(f"{sequential}.{{b}}.conv{{k}}", f"{name}.{{b}}.conv{{k}}")
        stages += batch_norm(f"{sequential}.{{b}}.bn{{k}}", f"{name}.{{b}}.bn{{k}}")
        stages += conv(f"{sequential}.{{b}}.downsample.0", f"{name}.{{b}}.downsample.conv")
        stages += batch_norm(f"{sequential}.{{b}}.downsample.1", f"{name}.{{b}}.downsample.bn")
    d2l = Table(conv("0", "conv1"), batch_norm("1", "bn1"), stages)
    return {"torchvision": torchvision, "d2l": d2l}


def _torch_reference(options: NoOptions, output_stride: int) -> Any:
    from fcn_jax.convert.torch_reference import import_torchvision

    return import_torchvision().models.resnet18(weights=None)


RESNET18 = Backbone(
    name="resnet18",
    summary="ResNet-18, torchvision's; strides 4 to 32, 64 to 512 channels, 11.2 M parameters",
    reference="He et al. 2015, arXiv:1512.03385; torchvision.models.resnet18",
    features=_features,
    build=lambda options, *, output_stride, dtype=jnp.float32, param_dtype=jnp.float32, rngs: ResNet(
        (2, 2, 2, 2), dtype=dtype, param_dtype=param_dtype, rngs=rngs
    ),
    torch=TorchBridge(
        tables=_tables,
        reference=_torch_reference,
        weights={
            "IMAGENET1K_V1": Weights(
                "https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd", "ImageNet-1k, top-1 accuracy 69.758"
            )
        },
    ),
)
