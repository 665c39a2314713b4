"""A convolution and the batch normalization after it, as one kernel where that is faster."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from fcn_jax.nn._batch_norm import BatchNorm
from fcn_jax.nn._conv import Conv, conv
from fcn_jax.nn._conv_xla import Settings, is_stem

_FOLDING: contextvars.ContextVar[bool | None] = contextvars.ContextVar("folding", default=None)


def conv_batch_norm(
    layer: Callable[[jax.Array], jax.Array], norm: Callable[[jax.Array], jax.Array], x: jax.Array
) -> jax.Array:
    """`norm(layer(x))`, f[N, H, W, I] -> f[N, h, w, O] in the dtype of `norm`; in train mode it is just that.

    In eval mode on GPUs, in 16 bits, the normalization's factor is multiplied into the kernel,
    which is converted from float32 anyway. What is left of it is a bias, which cuDNN adds inside
    the convolution, with the shortcut and the ReLU that follow. CPUs and TPUs fuse the
    multiplication into a loop that they have to make all the same. So do GPUs after a network's
    first convolution.

    Args:
        layer: a `Conv`; any other is called, as it may do something else.
        norm: a `BatchNorm`; likewise.
        x: f[N, H, W, I].

    Raises:
        ValueError: as `BatchNorm` in train mode, of a single value per channel.
    """
    if not (
        type(layer) is Conv
        and type(norm) is BatchNorm
        and norm.use_running_average
        and _folds(layer)
    ):
        return norm(layer(x))
    factor, shift = norm.as_affine()
    if layer.bias is not None:
        shift = shift + layer.bias[...] * factor
    y = conv(
        x.astype(layer.dtype),
        layer.kernel[...] * factor,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    # In the same dtype, or XLA would not give the sum to cuDNN.
    return y.astype(norm.dtype) + shift.astype(norm.dtype)


@contextlib.contextmanager
def folding(enabled: bool) -> Iterator[None]:
    """Have `conv_batch_norm` fold, or not, in what is traced inside, whatever device and dtype; what has been compiled stays as it is."""
    token = _FOLDING.set(enabled)
    try:
        yield
    finally:
        _FOLDING.reset(token)


def _folds(layer: Conv) -> bool:
    if (chosen := _FOLDING.get()) is not None:
        return chosen
    # A stem's result is rearranged, which hides its bias from cuDNN, and the max pool after it is a
    # loop that can normalize as well.
    stem = is_stem(
        Settings(layer.stride, layer.padding, layer.dilation, layer.groups), layer.kernel.shape
    )
    return jax.default_backend() == "gpu" and jnp.dtype(layer.dtype).itemsize < 4 and not stem
