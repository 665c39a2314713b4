"""yourname: a plain convolutional network, as a backbone for fcn-jax.

A stem and three stages of two 3x3 convolutions, each with batch normalization and ReLU. Replace the
network with your own. The descriptor at the end must stay true; the tests compare it with the
network.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import PositiveInt

from fcn_jax import nn
from fcn_jax.api import Backbone, FeatureSpec, TorchBridge, ceil_size
from fcn_jax.pytorch import Table, conv_norm


@dataclasses.dataclass(frozen=True)
class YournameOptions:
    """Options of yourname, which a recipe sets in `[model.backbone_options]`.

    Attributes:
        width: channels of the stem. The stages have twice, four and eight times as many.
    """

    width: PositiveInt = 32


class Stage(nnx.Module):
    """Two 3x3 convolutions, the first with the stride, the second with the dilation."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dilation: int, **settings: Any
    ) -> None:
        """Draw the parameters. `settings` are those of every `nn.ConvNormAct`."""
        self.conv1 = nn.ConvNormAct(in_channels, out_channels, 3, stride=stride, **settings)
        self.conv2 = nn.ConvNormAct(out_channels, out_channels, 3, dilation=dilation, **settings)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, ceil(H / stride), ceil(W / stride), O]."""
        return self.conv2(self.conv1(x))


class YournameNet(nnx.Module):
    """The stem, of stride 2, and the stages.

    Attributes:
        stem: 3x3, 3 -> `width`.
        stages: three of them.
    """

    def __init__(
        self,
        options: YournameOptions,
        *,
        output_stride: int = 16,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters. Their shapes do not depend on the output stride."""
        settings: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.stem = nn.ConvNormAct(3, options.width, 3, stride=2, **settings)
        stages, channels = [], options.width
        for stride, dilation in _strides_and_dilations(output_stride):
            stages.append(Stage(channels, 2 * channels, stride, dilation, **settings))
            channels *= 2
        self.stages = nnx.List(stages)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> the outputs of the stages by name; see `_features`."""
        x = self.stem(x)
        features = {}
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            features[f"stage{number}"] = x
        return features


def _strides_and_dilations(output_stride: int) -> list[tuple[int, int]]:
    """For each stage. At output stride 8 the last one is dilated instead of strided."""
    return [(2, 1), (2, 1), (2, 1) if output_stride == 16 else (1, 2)]


def _features(options: YournameOptions, output_stride: int) -> tuple[FeatureSpec, ...]:
    """The specs, from shallow to deep: name, channels, stride, and the size for an image's size."""
    strides = (4, 8, output_stride)
    return tuple(
        FeatureSpec(f"stage{number}", options.width * 2**number, stride, ceil_size(stride))
        for number, stride in enumerate(strides, start=1)
    )


def _torch_reference(options: YournameOptions, output_stride: int) -> Any:
    """The same network in PyTorch, for `fcn-jax verify` and the tests. Omit it if there is none."""
    import torch  # inside the function, since the backbone must work without PyTorch

    class TorchStage(torch.nn.Module):
        def __init__(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(channels)
            self.conv2 = torch.nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
            self.bn2 = torch.nn.BatchNorm2d(channels)

        def forward(self, x: Any) -> Any:
            return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()

    class TorchYournameNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, options.width, 3, 2, 1, bias=False)
            self.stem_bn = torch.nn.BatchNorm2d(options.width)
            self.stages = torch.nn.ModuleList(
                TorchStage(
                    options.width * 2**number, options.width * 2 ** (number + 1), stride, dilation
                )
                for number, (stride, dilation) in enumerate(_strides_and_dilations(output_stride))
            )

        def forward(self, x: Any) -> dict[str, Any]:
            x = self.stem_bn(self.stem(x)).relu()
            features = {}
            for number, stage in enumerate(self.stages, start=1):
                x = features[f"stage{number}"] = stage(x)
            return features

    return TorchYournameNet()


YOURNAME = Backbone(
    name="yourname",
    summary="a plain convolutional network; strides 4, 8 and 16 or 8",
    reference="",  # the paper or file that it follows
    options=YournameOptions,
    output_strides=(16, 8),  # the first is the default
    features=_features,
    build=YournameNet,
    torch=TorchBridge(
        # The names of PyTorch's convolution and normalization, and of the module's layer.
        tables=Table(
            conv_norm("stem", "stem_bn", "stem"),
            conv_norm("stages.{i}.conv{k}", "stages.{i}.bn{k}", "stages.{i}.conv{k}"),
        ),
        reference=_torch_reference,
    ),
    api_version=(2, 0),
)
