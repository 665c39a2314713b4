"""Forms of a 2-d convolution that are XLA's own, for GPUs and TPUs.

A form of the gradients gives the input's in the dtype of `x`, and the kernel's in float32.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Settings(NamedTuple):
    """What tells one convolution from another, but for its shapes; see `fcn_jax.nn.conv`."""

    stride: int
    padding: int
    dilation: int
    groups: int


def xla_conv(settings: Settings, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As it stands: what `fcn_jax.nn.conv` means."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (settings.stride,) * 2,
        [(settings.padding,) * 2] * 2,
        rhs_dilation=(settings.dilation,) * 2,
        dimension_numbers=DIMENSIONS,
        feature_group_count=settings.groups,
    )


def tpu_grads(settings: Settings, x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    """XLA's own, but for a kernel gradient that the matrix unit gives in float32, and chips add up so."""
    grad_x = jax.vjp(lambda x: xla_conv(settings, x, kernel), x)[1](grad)[0]
    stride, padding, dilation = settings.stride, settings.padding, settings.dilation
    ends = [
        (rows - 1) * stride + dilation * (taps - 1) + 1 - size - padding
        for rows, taps, size in zip(grad.shape[1:3], kernel.shape[:2], x.shape[1:3], strict=True)
    ]
    grad_kernel = lax.conv_general_dilated(
        x,
        grad,
        (dilation,) * 2,
        [(padding, end) for end in ends],
        rhs_dilation=(stride,) * 2,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=settings.groups,
        preferred_element_type=jnp.float32,
    )
    return grad_x, grad_kernel


def gpu_conv(settings: Settings, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`xla_conv`, but for the first convolution of a network."""
    return (space_to_depth if _is_stem(settings, kernel) else xla_conv)(settings, x, kernel)


def gpu_grads(settings: Settings, x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    """XLA's own of `gpu_conv`. A bfloat16 kernel's gradient comes in that, to which alone cuDNN multiplies."""
    grad_x, grad_kernel = jax.vjp(functools.partial(gpu_conv, settings), x, kernel)[1](grad)
    return grad_x, grad_kernel.astype(jnp.float32)


_STEM_CHANNELS = 4
"""What a stem's channels are filled up to: of 2x2 pixels they are 16, as many as tensor cores multiply at a time in bfloat16."""


def _is_stem(settings: Settings, kernel: jax.Array) -> bool:
    """Whether it is such as begins a network, strided and of a few channels, which leave most of a tensor core without work."""
    few = kernel.shape[2] <= _STEM_CHANNELS and min(kernel.shape[:2]) > settings.stride
    return few and settings.stride > 1 and settings.dilation == 1 and settings.groups == 1


def space_to_depth(settings: Settings, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A strided convolution as one of stride 1 on blocks of stride x stride pixels, whose channels lie side by side.

    On an H200 the 7x7 on 3 channels of 32 images of 320x480, in bfloat16, takes 0.30 ms so where cuDNN alone takes 0.74 ms, its kernel
    gradient 0.23 and 0.48 ms.
    """
    stride, padding, (*taps, channels, out) = settings.stride, settings.padding, kernel.shape
    more, deep = _STEM_CHANNELS - channels, stride * stride * _STEM_CHANNELS
    down, across = (-(-k // stride) for k in taps)
    rows, cols = (
        (size + 2 * padding - k) // stride + blocks for size, k, blocks in zip(x.shape[1:3], taps, (down, across), strict=True)
    )
    edges = [(padding, stride * blocks - size - padding, 0) for size, blocks in zip(x.shape[1:3], (rows, cols), strict=True)]
    x = lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), *edges, (0, more, 0)))
    x = x.reshape(x.shape[0], rows, stride, cols, stride, _STEM_CHANNELS).swapaxes(2, 3).reshape(x.shape[0], rows, cols, deep)
    kernel = jnp.pad(kernel, ((0, down * stride - taps[0]), (0, across * stride - taps[1]), (0, more), (0, 0)))
    kernel = kernel.reshape(down, stride, across, stride, _STEM_CHANNELS, out).swapaxes(1, 2).reshape(down, across, deep, out)
    return xla_conv(Settings(1, 0, 1, 1), x, kernel)
