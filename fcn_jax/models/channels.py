"""Images of other than three channels: the first convolution and the normalization.

A backbone is built for RGB. Its first convolution is then replaced by one of N channels, whatever
the backbone: it is the only convolution with three input channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax.errors import ConfigError, PluginError, listing
from fcn_jax.models.names import leaves
from fcn_jax.plugins.api import ModelSpec, Preprocess

RGB = 3
MOST = 512
"""The most channels of an image that OpenCV resizes."""


def problems(spec: ModelSpec) -> list[str]:
    """What is wrong with a spec's channels, means and deviations."""
    found = []
    if not 1 <= spec.in_channels <= MOST:
        found.append(f"in_channels is {spec.in_channels}; it must be 1 to {MOST}")
    given = {"mean": spec.mean, "std": spec.std}
    lacking = [name for name, values in given.items() if values is None]
    if len(lacking) == 1:
        found.append(
            f"{'std' if lacking == ['mean'] else 'mean'} is given without {lacking[0]}; give both, "
            "in units of the stored values, or neither"
        )
    for name, values in given.items():
        if values is not None and len(values) != spec.in_channels:
            found.append(
                f"{name} has {len(values)} values, and in_channels is {spec.in_channels}; it must "
                "have one for each channel"
            )
        elif values is not None and not all(map(math.isfinite, values)):
            found.append(f"{name} is {listing(map(str, values))}; its values must be finite")
    if spec.std is not None and min(spec.std, default=1) <= 0:
        found.append(f"std is {listing(map(str, spec.std))}; its values must be above 0")
    return found


def preprocess_of(preprocess: Preprocess, spec: ModelSpec) -> Preprocess:
    """How the input of a model is made from its images.

    Args:
        preprocess: the backbone's, for RGB.
        spec: its `mean` and `std` are those of the image's stored values. Without them, one channel
            is normalized by the averages of the backbone's three, and of several channels the i-th
            as the (i mod 3)-th of RGB, whose weights it gets, too (`adapted_kernel`).
    """
    count = spec.in_channels
    if spec.mean is not None and spec.std is not None:
        mean, std = spec.mean, spec.std
        if preprocess.channel_order == "bgr":
            mean, std = _swapped(mean), _swapped(std)
        return dataclasses.replace(preprocess, mean=mean, std=std, scale=255.0)
    if count == RGB:
        return preprocess
    mean, std = preprocess.mean, preprocess.std
    if count == 1:
        mean, std = (sum(mean) / RGB,), (sum(std) / RGB,)
    else:
        mean, std = (tuple(x[i % RGB] for i in range(count)) for x in (mean, std))
    return dataclasses.replace(preprocess, mean=mean, std=std)


def _swapped(values: Sequence[float]) -> tuple[float, ...]:
    return (*values[:RGB][::-1], *values[RGB:]) if len(values) >= RGB else tuple(values)


def adapted_kernel(kernel: Any, channels: int) -> Any:
    """The kernel of a first convolution for other channels than RGB.

    As `adapt_input_conv` of timm (`timm/models/_manipulate.py`): for one channel, the sum over the
    three, which is what a gray picture in RGB gets. Otherwise channel i gets the weights of channel
    i mod 3, times 3 / channels.

    Args:
        kernel: f[kH, kW, 3, O].
        channels: the new number of input channels.

    Returns:
        f[kH, kW, channels, O].
    """
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    if channels == RGB:
        return kernel
    return kernel[:, :, np.arange(channels) % RGB] * np.float32(RGB / channels)


def set_channels(backbone: nnx.Module, name: str, channels: int, rngs: nnx.Rngs) -> None:
    """Give the first convolution of a backbone another number of input channels, in place.

    Its kernel is drawn from a normal distribution. The variance of a channel's weights is that of
    RGB times 3 / channels, so that activations keep theirs.

    Args:
        backbone: as its plugin builds it, for RGB.
        name: the backbone's, for an error.
        channels: the new number.
        rngs: source of the initial values.

    Raises:
        PluginError: the backbone does not have exactly one convolution of three input channels.
    """
    if channels == RGB:
        return
    found = {
        path: leaf
        for path, leaf in leaves(backbone).items()
        if path.endswith("kernel") and len(leaf.shape) == 4 and leaf.shape[2] == RGB
    }
    if len(found) != 1:
        raise PluginError(
            f"backbone '{name}' has {len(found)} convolutions of {RGB} input channels "
            f"({listing(found) or 'none'}), so that its first one is not known; in_channels must "
            f"be {RGB}"
        )
    (leaf,) = found.values()
    old = leaf.get_value()
    shape = (*old.shape[:2], channels, old.shape[3])
    drawn = jax.random.normal(rngs.params(), shape, old.dtype)
    leaf.set_value(drawn * old.std() * np.float32(math.sqrt(RGB / channels)))


def check(spec: ModelSpec) -> None:
    """Raise `ConfigError` with all problems of a spec's channels."""
    if found := problems(spec):
        raise ConfigError("; ".join(found))
