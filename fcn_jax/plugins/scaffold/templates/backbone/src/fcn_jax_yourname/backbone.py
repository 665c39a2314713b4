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
    """Two 3x3 convolutions, the first with stride 2."""

    def __init__(self, in_channels: int, out_channels: int, **settings: Any) -> None:
        """Draw the parameters. `settings` are those of every `nn.ConvNormAct`."""
        self.conv1 = nn.ConvNormAct(in_channels, out_channels, 3, stride=2, **settings)
        self.conv2 = nn.ConvNormAct(out_channels, out_channels, 3, **settings)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> f[N, ceil(H / 2), ceil(W / 2), O]."""
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
        """Draw the parameters."""
        settings: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        width = options.width
        self.stem = nn.ConvNormAct(3, width, 3, stride=2, **settings)
        self.stages = nnx.List(
            [
                Stage(width, 2 * width, **settings),
                Stage(2 * width, 4 * width, **settings),
                Stage(4 * width, 8 * width, **settings),
            ]
        )

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """f[N, H, W, 3] -> the outputs of the stages by name; see `_features`."""
        x = self.stem(x)
        features = {}
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            features[f"stage{number}"] = x
        return features


def _features(options: YournameOptions, output_stride: int) -> tuple[FeatureSpec, ...]:
    """The specs, from shallow to deep: name, channels, stride, and the size for an image's size."""
    return (
        FeatureSpec("stage1", 2 * options.width, 4, ceil_size(4)),
        FeatureSpec("stage2", 4 * options.width, 8, ceil_size(8)),
        FeatureSpec("stage3", 8 * options.width, 16, ceil_size(16)),
    )


def _torch_reference(options: YournameOptions, output_stride: int) -> Any:
    """The same network in PyTorch, for `fcn-jax verify` and the tests. Omit it if there is none."""
    import torch  # inside the function, since the backbone must work without PyTorch

    def layer(in_channels: int, out_channels: int, stride: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            torch.nn.BatchNorm2d(out_channels),
            torch.nn.ReLU(),
        )

    class TorchYournameNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = options.width
            self.stem = layer(3, width, 2)
            self.stages = torch.nn.ModuleList(
                torch.nn.Sequential(layer(n, 2 * n, 2), layer(2 * n, 2 * n, 1))
                for n in (width, 2 * width, 4 * width)
            )

        def forward(self, x: Any) -> dict[str, Any]:
            x = self.stem(x)
            features = {}
            for number, stage in enumerate(self.stages, start=1):
                x = features[f"stage{number}"] = stage(x)
            return features

    return TorchYournameNet()


YOURNAME = Backbone(
    name="yourname",
    summary="a plain convolutional network; strides 4, 8 and 16",
    reference="",  # the paper or file that it follows
    options=YournameOptions,
    output_strides=(16,),  # the strides of the deepest feature that it can be built with
    features=_features,
    build=YournameNet,
    torch=TorchBridge(
        # The names of PyTorch's convolution and normalization, and of the module's layer.
        tables=Table(
            conv_norm("stem.0", "stem.1", "stem"),
            conv_norm("stages.{i}.0.0", "stages.{i}.0.1", "stages.{i}.conv1"),
            conv_norm("stages.{i}.1.0", "stages.{i}.1.1", "stages.{i}.conv2"),
        ),
        reference=_torch_reference,
    ),
    api_version=(2, 0),
)
