"""2-d convolution for GPUs and TPUs, by XLA's convolution.

Gradients: of the input in the dtype of `x`, of the kernel in float32.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.nn._split_rows import block_rows

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Settings(NamedTuple):
    """Parameters of a convolution except its shapes; see `fcn_jax.nn.conv`."""

    stride: int
    padding: int
    dilation: int
    groups: int


def xla_conv(settings: Settings, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`fcn_jax.nn.conv` as one XLA convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (settings.stride,) * 2,
        [(settings.padding,) * 2] * 2,
        rhs_dilation=(settings.dilation,) * 2,
        dimension_numbers=DIMENSIONS,
        feature_group_count=settings.groups,
    )


def tpu_grads(
    settings: Settings, x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """XLA's autodiff, except that the kernel gradient is computed and all-reduced in float32."""
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
    """`xla_conv`, except for the first convolution of a network."""
    if not is_stem(settings, kernel.shape):
        return xla_conv(settings, x, kernel)
    return space_to_depth(
        settings, x, kernel, columns=max(1, 8 // settings.stride) if x.dtype.itemsize < 4 else 1
    )


def gpu_grads(
    settings: Settings, x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """XLA's autodiff of `gpu_conv`. cuDNN computes a bfloat16 kernel gradient only in bfloat16."""
    if is_stem(settings, kernel.shape):
        # The gradients of the columns are summed in this dtype. float64 stays.
        kernel = kernel.astype(jnp.float64 if kernel.dtype == jnp.float64 else jnp.float32)
    grad_x, grad_kernel = jax.vjp(functools.partial(gpu_conv, settings), x, kernel)[1](grad)
    return grad_x, grad_kernel.astype(jnp.float32)


_STEM_CHANNELS = 4
"""Channels of a stem after padding: a block of 2x2 pixels then has 16, which fills tensor cores."""


def is_stem(settings: Settings, shape: tuple[int, ...]) -> bool:
    """Whether a convolution is like the first of a network: strided, with few input channels.

    So few channels leave most of a tensor core idle.

    Args:
        settings: of the convolution.
        shape: of its kernel, (kH, kW, I / groups, O).
    """
    few = shape[2] <= _STEM_CHANNELS and min(shape[:2]) > settings.stride
    return few and settings.stride > 1 and settings.dilation == 1 and settings.groups == 1


def space_to_depth(settings: Settings, x: jax.Array, kernel: jax.Array, columns: int) -> jax.Array:
    """Compute a strided convolution with stride 1 on blocks of pixels (space-to-depth).

    A block is `stride` pixels high and `stride * columns` pixels wide. Its pixels become channels,
    and so do the `columns` outputs it starts: more zeros in the kernel, but a shape that fills
    tensor cores. On an H100 the 7x7 convolution of 32 images of 320x480x3 in bfloat16, with its
    kernel gradient, takes 1.24 ms by cuDNN and 0.53, 0.41 and 0.32 ms here with 1, 2 and 4 columns
    (`python -m benchmarks.forms`).

    Args:
        settings: dilation and groups 1.
        x: f[N, H, W, I], I at most 4.
        kernel: f[kH, kW, I, O], rounded to the dtype of `x`.
        columns: at least 1.
    """
    stride, padding, (height, width, channels, out) = (
        settings.stride,
        settings.padding,
        kernel.shape,
    )
    more, block = _STEM_CHANNELS - channels, stride * columns
    # Size of the result; then blocks in a row, and blocks that `columns` outputs see.
    rows, cols = (
        (size + 2 * padding - taps) // stride + 1
        for size, taps in zip(x.shape[1:3], (height, width), strict=True)
    )
    groups, down, across = (
        -(-cols // columns),
        -(-height // stride),
        -(-(width + block - stride) // block),
    )
    high, wide = block_rows(rows + down - 1), groups + across - 1
    edges = (
        (padding, stride * high - x.shape[1] - padding, 0),
        (padding, block * wide - x.shape[2] - padding, 0),
    )
    x = lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), *edges, (0, more, 0)))
    deep = stride * block * _STEM_CHANNELS
    x = (
        x.reshape(x.shape[0], high, stride, wide, block, _STEM_CHANNELS)
        .swapaxes(2, 3)
        .reshape(x.shape[0], high, wide, deep)
    )
    # The kernel of each column begins at the first pixel of that column.
    below, right = down * stride - height, across * block - width
    kernels = [
        jnp.pad(kernel, ((0, below), (begin, right - begin), (0, more), (0, 0)))
        for begin in range(0, block, stride)
    ]
    kernel = jnp.stack(kernels, 3).reshape(
        down, stride, across, block, _STEM_CHANNELS, columns * out
    )
    kernel = kernel.swapaxes(1, 2).reshape(down, across, deep, columns * out)
    y = xla_conv(Settings(1, 0, 1, 1), x, kernel.astype(x.dtype))
    return y.reshape(*y.shape[:2], groups * columns, out)[:, :rows, :cols]
