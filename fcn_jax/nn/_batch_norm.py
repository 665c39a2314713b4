"""Batch normalization with PyTorch's numerics.

Ioffe and Szegedy 2015, arXiv:1502.03167; `torch.nn.BatchNorm2d`. It differs from Flax's layer in
two ways that matter for a port: the running variance is unbiased, and the momentum is the share of
the new value (0.1 here is 0.9 in Flax). Under `jax.jit`, with a batch sharded over devices, the
statistics are those of the whole batch.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fcn_jax.nn._barriers import MOMENTS
from fcn_jax.nn._initializers import on_device


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm_train(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    eps: float = 1e-5,
    near: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalize `x` by its own statistics over all axes but the last.

    Args:
        x: f[..., C].
        scale: f32[C].
        bias: f32[C].
        eps: added to the variance, above 0.
        near: f32[C], an estimate of the mean, such as the running mean. With it the statistics take
            one pass over `x` instead of two. The error of the variance is then 1e-6 to 1e-5 of the
            squared distance from the estimate to the mean.

    Returns:
        The result in the dtype of `x`, the mean f32[C], and the biased variance f32[C]. No gradient
        flows through the statistics.
    """
    return _train_fwd(x, scale, bias, eps, near)[0]


def _train_fwd(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float, near: jax.Array | None
) -> Any:
    wide = x.astype(jnp.float32)
    mean, var = (
        checkpoint_name(x, MOMENTS)
        for x in (_moments(wide) if near is None else _moments_near(wide, near))
    )
    inverse = lax.rsqrt(var + eps)
    y = ((wide - mean) * (inverse * scale) + bias).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, inverse)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance f32[C] of f32[..., C], in two passes."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


def _moments_near(x: jax.Array, near: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same in one pass, after `near` is subtracted.

    Otherwise the difference of squares would cancel if the mean is large compared with the
    standard deviation.
    """
    axes = tuple(range(x.ndim - 1))
    shifted = x - near
    mean = shifted.mean(axes)
    return near + mean, jnp.maximum(jnp.square(shifted).mean(axes) - jnp.square(mean), 0)


def _train_bwd(
    eps: float, residuals: Any, grads: Any
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    x, scale, mean, inverse = residuals
    axes = tuple(range(x.ndim - 1))
    grad = grads[0].astype(jnp.float32)
    normalized = (x.astype(jnp.float32) - mean) * inverse
    grad_bias = grad.sum(axes)
    grad_scale = (grad * normalized).sum(axes)
    count = math.prod(x.shape[:-1])
    grad_x = (scale * inverse) * (grad - grad_bias / count - normalized * (grad_scale / count))
    return grad_x.astype(x.dtype), grad_scale, grad_bias, None


batch_norm_train.defvjp(_train_fwd, _train_bwd)


class BatchNorm(nnx.Module):
    """Batch normalization layer over the last axis.

    Attributes:
        scale: f32[C], PyTorch's `weight`.
        bias: f32[C].
        mean: f32[C], running mean.
        var: f32[C], running unbiased variance.
        num_batches_tracked: i32[], number of batches in train mode, for PyTorch's state dict.
        use_running_average: True after `model.eval()`, False after `model.train()`.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Start with scale 1, bias 0, mean 0, variance 1.

        `eps` is added to the variance. `momentum` is the share of the new value, 0 to 1.
        """
        self.scale = nnx.Param(on_device(np.ones(channels), param_dtype))
        self.bias = nnx.Param(on_device(np.zeros(channels), param_dtype))
        self.mean = nnx.BatchStat(on_device(np.zeros(channels), jnp.float32))
        self.var = nnx.BatchStat(on_device(np.ones(channels), jnp.float32))
        self.num_batches_tracked = nnx.BatchStat(on_device(np.zeros(()), jnp.int32))
        self.eps, self.momentum, self.dtype = eps, momentum, dtype
        self.use_running_average = False

    def __call__(self, x: Float[Array, "*N C"]) -> Float[Array, "*N C"]:
        """f[..., C] -> `dtype`[..., C]. Train mode updates the running statistics.

        Raises:
            ValueError: in train mode, if there is a single value per channel.
        """
        x = x.astype(self.dtype)
        if self.use_running_average:
            factor, shift = self.as_affine()
            return (x.astype(jnp.float32) * factor + shift).astype(x.dtype)
        count = math.prod(x.shape[:-1])
        if count < 2:
            raise ValueError(
                "batch normalization in train mode needs more than one value per channel, got an "
                f"input of shape {x.shape}; use a larger batch or image, or model.eval()"
            )
        # One pass is exact enough for 16-bit values. It is as exact as two passes once the running
        # mean is near, which takes a few times 1 / momentum steps. A value of the batch itself
        # would be near from the start, but costs TPUs another pass.
        near = self.mean[...] if x.dtype.itemsize < 4 else None
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        y, mean, var = batch_norm_train(x, scale, bias, self.eps, near)
        # Not `[...] =`, which asks for the sharding of the new value: JAX before 0.12 then searches
        # everything traced so far, which takes half of the tracing time of a ResNet-152.
        self.mean.set_value(self._moved(self.mean[...], mean))
        self.var.set_value(self._moved(self.var[...], var * (count / (count - 1))))
        self.num_batches_tracked.set_value(self.num_batches_tracked[...] + 1)
        return y

    def as_affine(self) -> tuple[jax.Array, jax.Array]:
        """Factor and summand f32[C] of eval mode, which returns `x * factor + summand`."""
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        factor = scale * lax.rsqrt(self.var[...] + self.eps)
        return factor, bias - self.mean[...] * factor

    def _moved(self, old: jax.Array, new: jax.Array) -> jax.Array:
        return (1 - self.momentum) * old + self.momentum * lax.stop_gradient(new)
