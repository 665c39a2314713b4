"""Layer normalization and layer scale, for transformers and networks after them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from fcn_jax.nn._initializers import on_device


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis; `torch.nn.LayerNorm(channels)`.

    Ba et al. 2016, arXiv:1607.06450. In NHWC it is also the "LayerNorm2d" of ConvNeXt. Result and
    gradients are computed in float32.

    Attributes:
        scale: f[C], in `param_dtype`; PyTorch's `weight`.
        bias: f[C].
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Start with scale 1 and bias 0. `eps` is added to the biased variance."""
        self.scale = nnx.Param(on_device(np.ones(channels), param_dtype))
        self.bias = nnx.Param(on_device(np.zeros(channels), param_dtype))
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: Float[Array, "*N C"]) -> Float[Array, "*N C"]:
        """f[..., C] -> `dtype`[..., C]."""
        wide = x.astype(jnp.float32)
        centered = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centered).mean(-1, keepdims=True)
        y = centered * lax.rsqrt(variance + self.eps)
        scale, bias = (leaf[...].astype(jnp.float32) for leaf in (self.scale, self.bias))
        return (y * scale + bias).astype(self.dtype)


class LayerScale(nnx.Module):
    """A learned factor for each channel, at the end of a residual branch.

    Touvron et al. 2021, arXiv:2103.17239. The gradient of the factors is summed in float32.

    Attributes:
        scale: f[C], in `param_dtype`.
    """

    def __init__(
        self,
        channels: int,
        *,
        init_value: float = 1e-6,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Start with `init_value` for all channels."""
        self.scale = nnx.Param(on_device(np.full(channels, init_value), param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*N C"]) -> Float[Array, "*N C"]:
        """f[..., C] -> `dtype`[..., C]."""
        return (x.astype(jnp.float32) * self.scale[...].astype(jnp.float32)).astype(self.dtype)
