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
from fcn_jax.pytorch import Table, batch_norm, conv


@dataclasses.dataclass(frozen=True)
class YournameOptions:
    """Options of yourname, which a recipe sets in `[model.head_options]`.

    Attributes:
        channels: channels to which both features are projected.
    """

    channels: PositiveInt = 64


class YournameHead(nnx.Module):
    """1x1 convolutions of both features, their sum, normalization, ReLU, and a 1x1 convolution.

    Attributes:
        shallow_conv: 1x1, without bias.
        deep_conv: 1x1, without bias.
        bn: batch normalization of the sum.
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
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        (shallow, deep), channels = features, options.channels
        settings: dict[str, Any] = {"use_bias": False, "rngs": rngs, **types}
        self.shallow, self.deep = shallow.name, deep.name
        self.shallow_conv = nn.Conv(shallow.channels, channels, 1, **settings)
        self.deep_conv = nn.Conv(deep.channels, channels, 1, **settings)
        self.bn = nn.BatchNorm(channels, **types)
        self.score = nn.Conv(channels, num_classes, 1, rngs=rngs, **types)

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        shallow = self.shallow_conv(features[self.shallow])
        deep = self.deep_conv(features[self.deep])
        y = shallow + nn.resize_bilinear(deep, (shallow.shape[1], shallow.shape[2]))
        return nn.resize_bilinear(self.score(nnx.relu(self.bn(y))), out_hw)


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

    class TorchYournameHead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shallow_conv = torch.nn.Conv2d(shallow.channels, options.channels, 1, bias=False)
            self.deep_conv = torch.nn.Conv2d(deep.channels, options.channels, 1, bias=False)
            self.bn = torch.nn.BatchNorm2d(options.channels)
            self.score = torch.nn.Conv2d(options.channels, num_classes, 1)

        def forward(self, shallow: Any, deep: Any) -> Any:
            shallow, deep = self.shallow_conv(shallow), self.deep_conv(deep)
            deep = torch.nn.functional.interpolate(
                deep, size=shallow.shape[2:], mode="bilinear", align_corners=False
            )
            # fcn-jax resizes the result to the image's size.
            return self.score(self.bn(shallow + deep).relu())

    return TorchYournameHead()


YOURNAME = Head(
    name="yourname",
    summary="the shallowest and the deepest feature, added and resized bilinearly",
    reference="",  # the paper or file that it follows
    options=YournameOptions,
    select=_select,
    build=YournameHead,
    torch=TorchBridge(
        # PyTorch's names equal the module's; `conv("0", "shallow_conv")` maps different names.
        tables=Table(
            conv("shallow_conv"), conv("deep_conv"), batch_norm("bn"), conv("score", bias=True)
        ),
        reference=_torch_reference,
    ),
    api_version=(2, 0),
)
