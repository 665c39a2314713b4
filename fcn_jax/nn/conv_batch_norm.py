"""A convolution and the batch normalisation after it, as one kernel where that is faster."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from fcn_jax.nn.batch_norm import BatchNorm
from fcn_jax.nn.conv import Conv, conv

_FOLDING: contextvars.ContextVar[bool | None] = contextvars.ContextVar("folding", default=None)


def conv_batch_norm(layer: Conv, norm: BatchNorm, x: jax.Array) -> jax.Array:
    """`norm(layer(x))`, f[N, H, W, I] -> f[N, h, w, O]; the statistics are updated as by that.

    In eval mode on GPUs the normalisation's factor is multiplied into the kernel, where it is rounded to the compute dtype anyway. What is
    left of it is a bias, which cuDNN adds inside the convolution, with the shortcut and the ReLU that follow. CPUs and TPUs fuse the
    multiplication into a loop that they have to make all the same. Neither layer's own `__call__` is called then.
    """
    if not (norm.use_running_average and _folds()):
        return norm(layer(x))
    factor, shift = norm.as_affine()
    if layer.bias is not None:
        shift = shift + layer.bias[...] * factor
    y = conv(x.astype(layer.dtype), layer.kernel[...] * factor, layer.stride, layer.padding, layer.dilation, layer.groups)
    return (y.astype(jnp.float32) + shift).astype(norm.dtype)


@contextlib.contextmanager
def folding(enabled: bool) -> Iterator[None]:
    """Have `conv_batch_norm` fold, or not, in what is traced inside, whatever the device is."""
    token = _FOLDING.set(enabled)
    try:
        yield
    finally:
        _FOLDING.reset(token)


def _folds() -> bool:
    chosen = _FOLDING.get()
    return jax.default_backend() == "gpu" if chosen is None else chosen
