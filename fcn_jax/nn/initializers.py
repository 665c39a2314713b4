"""Initial values as PyTorch and torchvision draw them. Each has JAX's initializer signature: (key, shape, dtype) -> array."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]


def kaiming_normal_fan_out(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Normal with variance 2 / fan_out, for a kernel HWIO; torchvision's choice for ResNet's convolutions.

    `torch.nn.init.kaiming_normal_(mode="fan_out", nonlinearity="relu")`; He et al. 2015, arXiv:1502.01852.
    """
    height, width, _, out = shape
    return math.sqrt(2.0 / (height * width * out)) * jax.random.normal(key, shape, dtype)


def torch_default(fan_in: int) -> Initializer:
    """Uniform in +-1/sqrt(fan_in): what `torch.nn.Conv2d` and `torch.nn.Linear` draw for both kernel and bias.

    Args:
        fan_in: kernel height x width x input channels, at least 1.
    """
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def bilinear(key: jax.Array | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Bilinear interpolation on the channels' diagonal, for a transposed convolution's kernel (H, W, I, O).

    Long et al. 2015, arXiv:1411.4038; `bilinear_kernel` of the book chapter. The key is not used.
    """
    height, width, channels_in, channels_out = shape

    def ramp(size: int) -> jax.Array:
        factor = (size + 1) // 2
        center = factor - 1 if size % 2 else factor - 0.5
        return 1 - jnp.abs(jnp.arange(size) - center) / factor

    spatial = ramp(height)[:, None] * ramp(width)[None, :]
    diagonal = jnp.eye(channels_in, channels_out)
    return (spatial[:, :, None, None] * diagonal).astype(dtype)
