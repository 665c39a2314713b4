"""Depthwise convolutions and small stems for CPUs, elementwise: a sum over the taps of the kernel.

XLA fuses the sum into one loop over vectors of channels, which is fast if each tap is read from
memory as it is. So the padded array is stored first. Otherwise XLA would pad it again at each tap,
and would also compute again, at each tap, what comes before.

Gradients: of the input in the dtype of `x`, of the kernel in float32.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.nn._barriers import stored
from fcn_jax.nn._conv_xla import Settings

_STRIPS = 8
"""Strips of columns in a kernel gradient."""


def depthwise(settings: Settings, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`fcn_jax.nn.conv` with as many groups as channels; `kernel` is f[kH, kW, 1, C]."""
    return _by_taps(settings, x, kernel, lambda part, tap: part * tap[0])


def stem(settings: Settings, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`fcn_jax.nn.conv` with one group and so few channels that XLA's convolution is slow.

    The loop over vectors of output channels multiplies each vector by a pixel's value.
    """
    return _by_taps(
        settings,
        x,
        kernel,
        lambda part, tap: _sum(
            part[..., channel, None] * tap[channel] for channel in range(x.shape[3])
        ),
    )


def _by_taps(
    settings: Settings,
    x: jax.Array,
    kernel: jax.Array,
    term: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """The sum, in float32, of `term(pixels, kernel[i, j])` over the taps."""
    stride, dilation = settings.stride, settings.dilation
    rows, cols = (
        (size + 2 * settings.padding - dilation * (taps - 1) - 1) // stride + 1
        for size, taps in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )
    padded = _padded(x, ((settings.padding,) * 2,) * 2)
    return _sum(
        term(
            _part(padded, i * dilation, j * dilation, rows, cols, stride),
            kernel[i, j].astype(jnp.float32),
        )
        for i, j in _taps(kernel.shape)
    ).astype(x.dtype)


def input_grad(
    settings: Settings, kernel: jax.Array, grad: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Gradient of the input, f[shape].

    Pixels are grouped by their coordinates modulo the stride. Each group sees other taps, and is a
    sum over these with stride 1.
    """
    stride, padding, dilation = settings.stride, settings.padding, settings.dilation
    blocks = [-(-size // stride) for size in shape[1:3]]
    # offsets[side][phase]: tap -> distance between a pixel in its group and the output it adds to.
    offsets = [
        [
            {
                tap: (phase + padding - tap * dilation) // stride
                for tap in range(taps)
                if (phase + padding - tap * dilation) % stride == 0
            }
            for phase in range(stride)
        ]
        for taps in kernel.shape[:2]
    ]
    reach = [[o for phase in side for o in phase.values()] for side in offsets]
    padded = _padded(
        grad,
        [
            (-min(seen), max(seen) + block - size)
            for seen, block, size in zip(reach, blocks, grad.shape[1:3], strict=True)
        ],
    )
    (first, left), (high, wide) = map(min, reach), blocks

    def group(down: dict[int, int], across: dict[int, int]) -> jax.Array:
        if not (down and across):
            return jnp.zeros((shape[0], high, wide, shape[3]), grad.dtype)
        return _sum(
            _part(padded, down[i] - first, across[j] - left, high, wide)
            * kernel[i, j, 0].astype(jnp.float32)
            for i, j in itertools.product(down, across)
        ).astype(grad.dtype)

    if stride == 1:
        return group(offsets[0][0], offsets[1][0])
    rows = [jnp.stack([group(down, across) for across in offsets[1]], 3) for down in offsets[0]]
    whole = jnp.stack(rows, 2).reshape(shape[0], high * stride, wide * stride, shape[3])
    return whole[:, : shape[1], : shape[2]]


def kernel_grad(
    settings: Settings, x: jax.Array, grad: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Gradient of the kernel, f32[shape].

    XLA for CPUs reduces images to a value for each channel slowly. Here the products of pixels and
    gradients are first added up over `_STRIPS` strips of columns, elementwise. A product of
    matrices adds up the rest.
    """
    stride, padding, dilation = settings.stride, settings.padding, settings.dilation
    batch, rows, cols, channels = grad.shape
    if grad.size == 0:
        return jnp.zeros(shape, jnp.float32)
    strip = -(-cols // _STRIPS)
    strips = -(-cols // strip)
    width = (strips * strip - 1) * stride + dilation * (shape[1] - 1) + 1
    padded = _padded(x, ((padding,) * 2, (padding, width - x.shape[2] - padding)))
    grad = _padded(grad, ((0, 0), (0, strips * strip - cols)))
    ones = jnp.ones((1, batch * rows), jnp.float32)
    sums = []
    for i, j in _taps(shape):
        total = _sum(
            _part(padded, i * dilation, left * stride + j * dilation, rows, strip, stride)
            * grad[:, :, left : left + strip].astype(jnp.float32)
            for left in range(0, strips * strip, strip)
        )
        sums.append(ones @ total.reshape(batch * rows, strip * channels))
    return jnp.stack(sums).reshape(-1, strip, channels).sum(1).reshape(shape)


def _taps(shape: tuple[int, ...]) -> Iterable[tuple[int, int]]:
    return itertools.product(range(shape[0]), range(shape[1]))


def _padded(x: jax.Array, edges: Iterable[tuple[int, int]]) -> jax.Array:
    """`x` with zeros around its rows and columns, in memory; a negative width cuts off."""
    padding = ((0, 0, 0), *((*edge, 0) for edge in edges), (0, 0, 0))
    padded = lax.pad(x, np.zeros((), x.dtype), padding)
    return stored(padded) if padded.size else padded


def _part(x: jax.Array, top: int, left: int, rows: int, cols: int, stride: int = 1) -> jax.Array:
    """Every `stride`-th of the pixels from (top, left) on: f32[N, rows, cols, C]."""
    return x[
        :,
        top : top + (rows - 1) * stride + 1 : stride,
        left : left + (cols - 1) * stride + 1 : stride,
    ].astype(jnp.float32)


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, terms)
