"""Global response normalization, which makes channels compete."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fcn_jax.nn._initializers import on_device


class GlobalResponseNorm(nnx.Module):
    """`x + bias + scale * x * r`, with r the norm of a channel over the image, over their mean.

    Woo et al. 2023, arXiv:2301.00808; timm's `GlobalResponseNorm`, and the "GRN" of ConvNeXt V2.
    Result and gradients are computed in float32. A channel of zeros has a gradient, as in PyTorch.

    Attributes:
        scale: f[C], in `param_dtype`; PyTorch's `weight`.
        bias: f[C].
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-6,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Start with scale and bias 0, so that it returns its input. `eps` is added to the mean."""
        self.scale = nnx.Param(on_device(np.zeros(channels), param_dtype))
        self.bias = nnx.Param(on_device(np.zeros(channels), param_dtype))
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """f[N, H, W, C] -> `dtype`[N, H, W, C]."""
        wide = x.astype(jnp.float32)
        energy = jnp.square(wide).sum((1, 2), keepdims=True)
        # The root has no derivative at 0, where PyTorch's norm has the gradient 0.
        norm = jnp.where(energy > 0, jnp.sqrt(jnp.where(energy > 0, energy, 1)), 0)
        response = norm / (norm.mean(-1, keepdims=True) + self.eps)
        scale, bias = (leaf[...].astype(jnp.float32) for leaf in (self.scale, self.bias))
        return (wide + (bias + scale * (wide * response))).astype(self.dtype)
