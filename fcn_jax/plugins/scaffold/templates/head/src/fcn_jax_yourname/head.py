"""yourname: a head that combines the shallowest and the deepest feature.

Both are projected to the same number of channels. The deep one is resized to the shallow one's size
and added to it, and the sum is scored. Replace the network with your own. The descriptor at the end
must stay true; the tests compare it with the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import PositiveInt

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, Head, TorchBridge
from fcn_jax.errors import ConfigError
from fcn_jax.pytorch import Table, conv, conv_norm


@dataclasses.dataclass(frozen=True)
class YournameOptions:
    """Options of yourname, which a recipe sets in `[model.head_options]`.

    Attributes:
        channels: channels to which both features are projected.
    """

    channels: PositiveInt = 64


class YournameHead(nnx.Module):
    """1x1 convolutions of both features, their sum, and a 1x1 convolution to the classes.

    Attributes:
        project_shallow: 1x1, with batch normalization and ReLU.
        project_deep: 1x1, with batch normalization and ReLU.
        score: 1x1, `channels` -> classes, with bias.
    """

    def __init__(
        self,
        options: YournameOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters. `features` are those that `_select` has named."""
        settings: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        shallow, deep = features
        self.shallow, self.deep = shallow.name, deep.name
        self.project_shallow = nn.ConvNormAct(shallow.channels, options.channels, 1, **settings)
        self.project_deep = nn.ConvNormAct(deep.channels, options.channels, 1, **settings)
        self.score = nn.Conv(options.channels, num_classes, 1, **settings)

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        shallow = self.project_shallow(features[self.shallow])
        deep = self.project_deep(features[self.deep])
        y = shallow + nn.resize_bilinear(deep, (shallow.shape[1], shallow.shape[2]))
        return nn.resize_bilinear(self.score(y), out_hw)


def _select(options: YournameOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    """The names of the features that the head takes; by default the deepest."""
    if len(features) < 2:
        raise ConfigError(
            f"head 'yourname' needs two features; the backbone offers only {features[0].name}"
        )
    return (features[0].name, features[-1].name)


def _torch_reference(
    options: YournameOptions, features: Sequence[FeatureSpec], num_classes: int
) -> Any:
    """The same head in PyTorch, for `fcn-jax verify` and the tests. Omit it if there is none."""
    import torch  # inside the function, since the head must work without PyTorch

    shallow, deep = features

    def project(in_channels: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(in_channels, options.channels, 1, bias=False),
            torch.nn.BatchNorm2d(options.channels),
            torch.nn.ReLU(),
        )

    class TorchYournameHead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project_shallow = project(shallow.channels)
            self.project_deep = project(deep.channels)
            self.score = torch.nn.Conv2d(options.channels, num_classes, 1)

        def forward(self, shallow: Any, deep: Any) -> Any:
            shallow = self.project_shallow(shallow)
            deep = torch.nn.functional.interpolate(
                self.project_deep(deep), shallow.shape[2:], mode="bilinear", align_corners=False
            )
            return self.score(shallow + deep)  # fcn-jax resizes the result to the image's size

    return TorchYournameHead()


YOURNAME = Head(
    name="yourname",
    summary="the shallowest and the deepest feature, added and resized bilinearly",
    reference="",  # the paper or file that it follows
    options=YournameOptions,
    select=_select,
    build=YournameHead,
    torch=TorchBridge(
        # The names of PyTorch's convolution and normalization, and of the module's layer.
        tables=Table(
            conv_norm("project_shallow.0", "project_shallow.1", "project_shallow"),
            conv_norm("project_deep.0", "project_deep.1", "project_deep"),
            conv("score", bias=True),
        ),
        reference=_torch_reference,
    ),
    api_version=(2, 0),
)
