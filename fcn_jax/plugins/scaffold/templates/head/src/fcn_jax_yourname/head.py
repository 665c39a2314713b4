"""yourname: a head that fuses the shallowest and the deepest feature.

Both are brought to the same number of channels, the deep one is resized to the shallow one's size
and added to it, and the classes are scored there. Replace it by your own; what has to stay true is
what the descriptor at the end promises, and `pytest` says where it is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, Head, TorchBridge, require_no_offset
from fcn_jax.errors import ConfigError
from fcn_jax.pytorch.rules import Table, batch_norm, conv


@dataclasses.dataclass(frozen=True)
class YournameOptions:
    """Options of yourname, which a recipe sets in `[model.head_options]`.

    Attributes:
        channels: that both features are brought to, at least 1.
    """

    channels: int = 64

    def __post_init__(self) -> None:
        """Refuse values out of range; fcn-jax puts the name of the plugin before the message."""
        if self.channels < 1:
            raise ValueError(f"channels is {self.channels}; it must be at least 1")


class YournameHead(nnx.Module):
    """1x1 convolutions of both features, their sum, batch normalization, ReLU, and a 1x1 convolution to the classes.

    Attributes:
        shallow_conv: 1x1, without bias.
        deep_conv: 1x1, without bias.
        bn: of the sum.
        score: 1x1, `channels` -> classes, with bias.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters."""
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        shallow, deep = features
        self.shallow, self.deep = shallow.name, deep.name
        self.shallow_conv = nn.Conv(
            shallow.channels, channels, 1, use_bias=False, rngs=rngs, **types
        )
        self.deep_conv = nn.Conv(deep.channels, channels, 1, use_bias=False, rngs=rngs, **types)
        self.bn = nn.BatchNorm(channels, **types)
        self.score = nn.Conv(channels, num_classes, 1, rngs=rngs, **types)

    def __call__(self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]; out_hw is the size of the backbone's input."""
        shallow = self.shallow_conv(features[self.shallow])
        deep = nn.resize_bilinear(
            self.deep_conv(features[self.deep]), (shallow.shape[1], shallow.shape[2])
        )
        return nn.resize_bilinear(self.score(nnx.relu(self.bn(shallow + deep))), out_hw)


def _select(options: YournameOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    """The features that it takes, by what they are, never by the backbone's name; or one error that says what would fit."""
    if len(features) < 2:
        raise ConfigError(
            f"head 'yourname' needs two features; the backbone offers only {features[0].name}"
        )
    require_no_offset("yourname", [features[0], features[-1]])
    return (features[0].name, features[-1].name)


def _build(
    options: YournameOptions,
    features: Sequence[FeatureSpec],
    *,
    num_classes: int,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> YournameHead:
    return YournameHead(
        features, options.channels, num_classes, dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )


def _tables(options: YournameOptions) -> dict[str, Table]:
    # PyTorch's names and the module's are the same here; `conv("0", "shallow_conv")` maps one to
    # the other.
    return {
        "torchvision": Table(
            conv("shallow_conv"), conv("deep_conv"), batch_norm("bn"), conv("score", bias=True)
        )
    }


def _torch_reference(
    options: YournameOptions, features: Sequence[FeatureSpec], num_classes: int
) -> Any:
    """The PyTorch original, which `fcn-jax verify` and the tests compare with. Leave it out where there is none."""
    import torch  # inside: whoever trains with this head need not have PyTorch

    class TorchYournameHead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shallow_conv = torch.nn.Conv2d(
                features[0].channels, options.channels, 1, bias=False
            )
            self.deep_conv = torch.nn.Conv2d(features[1].channels, options.channels, 1, bias=False)
            self.bn = torch.nn.BatchNorm2d(options.channels)
            self.score = torch.nn.Conv2d(options.channels, num_classes, 1)

        def forward(self, shallow: Any, deep: Any) -> Any:
            shallow, deep = self.shallow_conv(shallow), self.deep_conv(deep)
            deep = torch.nn.functional.interpolate(
                deep, size=shallow.shape[2:], mode="bilinear", align_corners=False
            )
            return self.score(
                self.bn(shallow + deep).relu()
            )  # fcn-jax enlarges it to the image's size

    return TorchYournameHead()


YOURNAME = Head(
    name="yourname",
    summary="the shallowest and the deepest feature, added and resized bilinearly",
    reference="",  # the paper or file that it follows
    options=YournameOptions,
    select=_select,
    build=_build,
    maskable=True,  # all that happens across pixels is done by fcn_jax.nn
    torch=TorchBridge(tables=_tables, reference=_torch_reference),
    api_version=(1, 0),
)
