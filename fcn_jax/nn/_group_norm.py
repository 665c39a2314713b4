"""Group normalization, which does not depend on the size of the batch."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from fcn_jax.nn._initializers import on_device


class GroupNorm(nnx.Module):
    """Group normalization over the image and the channels of a group; `torch.nn.GroupNorm`.

    Wu and He 2018, arXiv:1803.08494. Each image is normalized alone, in train and in eval mode, so
    that it suits batches of one or two images. Result and gradients are computed in float32.

    Attributes:
        scale: f[C], in `param_dtype`; PyTorch's `weight`.
        bias: f[C].
        num_groups: number of groups of neighboring channels.
    """

    def __init__(
        self,
        num_groups: int,
        channels: int,
        *,
        eps: float = 1e-5,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Start with scale 1 and bias 0. `eps` is added to the biased variance.

        Raises:
            ValueError: the channels cannot be divided into so many groups.
        """
        if num_groups < 1 or channels % num_groups:
            raise ValueError(
                f"{channels} channels cannot be divided into {num_groups} groups of equal size"
            )
        self.scale = nnx.Param(on_device(np.ones(channels), param_dtype))
        self.bias = nnx.Param(on_device(np.zeros(channels), param_dtype))
        self.num_groups, self.eps, self.dtype = num_groups, eps, dtype

    def __call__(self, x: Float[Array, "N *D C"]) -> Float[Array, "N *D C"]:
        """f[N, ..., C] -> `dtype`[N, ..., C]; N images of any number of axes."""
        wide = x.astype(jnp.float32)
        grouped = wide.reshape(*x.shape[:-1], self.num_groups, -1)
        axes = (*range(1, x.ndim - 1), x.ndim)
        centered = grouped - grouped.mean(axes, keepdims=True)
        variance = jnp.square(centered).mean(axes, keepdims=True)
        y = (centered * lax.rsqrt(variance + self.eps)).reshape(x.shape)
        scale, bias = (leaf[...].astype(jnp.float32) for leaf in (self.scale, self.bias))
        return (y * scale + bias).astype(self.dtype)
