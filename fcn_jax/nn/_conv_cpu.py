"""2-d convolution for CPUs, where XLA is slow for kernel gradients, few channels and groups.

Gradients: of the input in the dtype of `x`, of the kernel in float32.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.nn import _winograd
from fcn_jax.nn._barriers import remat_barrier
from fcn_jax.nn._conv_xla import DIMENSIONS, Settings, is_stem, xla_conv
from fcn_jax.nn._depthwise_cpu import depthwise, input_grad, kernel_grad, stem

_COLUMNS = 1 << 20
"""Elements of im2col columns at a time in a kernel gradient; at least one row of all images."""

_WINOGRAD_CHANNELS = 64
"""Smallest number of channels, in and out, for Winograd's convolution and input gradient."""

_WINOGRAD_GRAD_CHANNELS = 128
"""The same for its kernel gradient."""

_STEM_TAPS = 32
"""Largest number of inputs of an output for a stem as a sum over its taps."""

_PART_CHANNELS = 16
"""Neighboring groups are computed as one up to this number of input channels."""


def cpu_conv(settings: Settings, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve in the fastest known form: up to thirty times as fast as XLA if it is grouped."""
    if settings.groups == 1:
        return _dense(settings, x, kernel)
    if _is_depthwise(settings, kernel):
        return depthwise(settings, x, kernel)
    parts = _parts(settings, kernel)
    dense = functools.partial(xla_conv, settings._replace(groups=1))
    return _join(
        lax.map(
            lambda part: dense(*part),
            (_split(x, parts), _split_kernel(kernel, settings.groups, parts)),
        )
    )


def cpu_grads(
    settings: Settings, x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `x` and `kernel`."""
    if settings.groups == 1:
        return _dense_grads(settings, x, kernel, grad)
    if _is_depthwise(settings, kernel):
        return input_grad(settings, kernel, grad, x.shape), kernel_grad(
            settings, x, grad, kernel.shape
        )
    parts = _parts(settings, kernel)
    dense = functools.partial(_dense_grads, settings._replace(groups=1))
    split = _split(x, parts), _split_kernel(kernel, settings.groups, parts), _split(grad, parts)
    grads_x, grads_kernel = lax.map(lambda part: dense(*part), split)
    return _join(grads_x), _join_kernel(grads_kernel, settings.groups)


def _dense(settings: Settings, x: jax.Array, kernel: jax.Array) -> jax.Array:
    if _suits_winograd(settings, x, kernel, _WINOGRAD_CHANNELS):
        if _is_sparse(settings, x):
            return _sparse(settings, x, kernel)
        return _winograd.conv3x3(x, kernel, settings.padding, settings.dilation)
    if _is_small_stem(settings, kernel):
        return stem(settings, x, kernel)
    return xla_conv(settings, x, kernel)


def _is_small_stem(settings: Settings, kernel: jax.Array) -> bool:
    """A 3x3 stem, of MobileNets and EfficientNets, but not a 7x7 one, of ResNets."""
    return is_stem(settings, kernel.shape) and kernel.size <= _STEM_TAPS * kernel.shape[3]


def _dense_grads(
    settings: Settings, x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    padding, dilation = settings.padding, settings.dilation
    if _suits_winograd(settings, x, kernel, _WINOGRAD_CHANNELS) and _is_sparse(settings, x):
        return jax.vjp(functools.partial(_sparse, settings), x, kernel)[1](grad)
    if _suits_winograd(settings, x, kernel, _WINOGRAD_CHANNELS) and padding <= 2 * dilation:
        # Transformed kernels are 16/9 times and transformed images four times as large as before.
        grad_x = _winograd.conv3x3(
            grad, remat_barrier(kernel, kernel), 2 * dilation - padding, dilation, transpose=True
        )
    else:
        grad_x = _input_grad(settings, kernel, grad, x.shape)
    if _suits_winograd(settings, x, kernel, _WINOGRAD_GRAD_CHANNELS):
        return grad_x, _winograd.kernel_grad(remat_barrier(x, kernel), grad, padding, dilation)
    return grad_x, _kernel_grad(settings, x, grad, kernel.shape)


def _suits_winograd(settings: Settings, x: jax.Array, kernel: jax.Array, channels: int) -> bool:
    # In bfloat16 the transforms of Winograd's form would lose too much.
    return (
        kernel.shape[:2] == (3, 3)
        and settings.stride == 1
        and min(kernel.shape[2:]) >= channels
        and x.dtype == jnp.float32
    )


def _is_sparse(settings: Settings, x: jax.Array) -> bool:
    """Whether a 3x3 convolution with stride 1 sees mostly padding, so that `_sparse` is faster.

    DeepLab's ASPP does: with 2048 -> 256 channels and rate 36, on 40x60 pixels, two cores take 131
    ms by Winograd, 52 ms by XLA and 31 ms in `_sparse`; the gradients take 254 ms, 265 ms and 102
    ms. At rate 12 both forms take the same time.
    """
    seen = tiled = 1
    for size in x.shape[1:3]:
        out = size + 2 * settings.padding - 2 * settings.dilation
        seen *= sum(
            last - first for first, last in (_touching(settings, size, tap) for tap in range(3))
        )
        tiled *= 4 * settings.dilation * -(-out // (2 * settings.dilation))
    return seen < tiled


def _touching(settings: Settings, size: int, tap: int) -> tuple[int, int]:
    """Range of the outputs along one side for which a tap of the kernel lies in the image."""
    offset = tap * settings.dilation - settings.padding
    first = max(0, -offset)
    return first, max(
        first, min(size + 2 * settings.padding - 2 * settings.dilation, size - offset)
    )


def _sparse(settings: Settings, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution with stride 1 as nine products, each with the part of the image it sees."""
    batch, height, width, _ = x.shape
    margin = 2 * settings.padding - 2 * settings.dilation
    y = jnp.zeros((batch, height + margin, width + margin, kernel.shape[3]), x.dtype)
    for i, j in itertools.product(range(3), range(3)):
        (top, bottom), (left, right) = _touching(settings, height, i), _touching(settings, width, j)
        if top < bottom and left < right:
            down, across = (
                i * settings.dilation - settings.padding,
                j * settings.dilation - settings.padding,
            )
            part = x[:, top + down : bottom + down, left + across : right + across] @ kernel[i, j]
            y += jnp.pad(
                part, ((0, 0), (top, y.shape[1] - bottom), (left, y.shape[2] - right), (0, 0))
            )
    return y


def _input_grad(
    settings: Settings, kernel: jax.Array, grad: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Input gradient of a dense convolution: a convolution with the flipped kernel."""
    padding = []
    for size, rows, taps in zip(shape[1:3], grad.shape[1:3], kernel.shape[:2], strict=True):
        reach = settings.dilation * (taps - 1)
        before = reach - settings.padding
        padding.append((before, size + reach - before - (rows - 1) * settings.stride - 1))
    return lax.conv_general_dilated(
        grad,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        padding,
        lhs_dilation=(settings.stride,) * 2,
        rhs_dilation=(settings.dilation,) * 2,
        dimension_numbers=DIMENSIONS,
    )


def _kernel_grad(
    settings: Settings, x: jax.Array, grad: jax.Array, kernel_shape: tuple[int, ...]
) -> jax.Array:
    """Kernel gradient of a dense convolution: products of im2col columns with the output gradients.

    The products are summed over strips of all images. XLA for CPUs computes it as a convolution
    whose kernel is the whole image, several times slower. Here each element of the kernel and
    channel has a row of its own: copies are long even with few channels, and the columns of a strip
    stay in the cache. If the images lie on several CPU devices, each makes its own columns, and the
    devices add up their sums strip by strip.
    """
    height, width, channels, out = kernel_shape
    batch, rows, cols = grad.shape[:3]
    if grad.size == 0:
        return jnp.zeros(kernel_shape, jnp.float32)
    strips = -(-rows // max(1, _COLUMNS // (height * width * channels * batch * cols)))
    strip = -(-rows // strips)
    phases = _phases(settings, x, height, width, strips * strip, cols)
    grad = jnp.pad(grad, ((0, 0), (0, strips * strip - rows), (0, 0), (0, 0)))
    seen = strip + phases.shape[4] - strips * strip

    def add(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        part = lax.dynamic_slice_in_dim(phases, number * strip, seen, axis=4)
        lines = []
        for i, j in itertools.product(range(height), range(width)):
            (down, a), (across, b) = (
                divmod(tap * settings.dilation, settings.stride) for tap in (i, j)
            )
            lines.append(part[a, b, :, :, down : down + strip, across : across + cols])
        share = lax.dot_general(
            jnp.concatenate(lines),
            lax.dynamic_slice_in_dim(grad, number * strip, strip, axis=1),
            (((1, 2, 3), (0, 1, 2)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return total + share, None

    total, _ = lax.scan(
        add, jnp.zeros((height * width * channels, out), jnp.float32), jnp.arange(strips)
    )
    return total.reshape(kernel_shape)


def _phases(
    settings: Settings, x: jax.Array, height: int, width: int, rows: int, cols: int
) -> jax.Array:
    """f[N,H,W,C] -> f[s,s,C,N,h,w]: pixels of the padded images, grouped by coordinates modulo s.

    s is the stride. The result covers `rows` x `cols` outputs of a `height` x `width` kernel.
    """
    stride, padding = settings.stride, settings.padding
    tall, wide = (
        out + settings.dilation * (taps - 1) // stride
        for out, taps in ((rows, height), (cols, width))
    )
    edges = [
        (padding, stride * size - have - padding, 0)
        for size, have in ((tall, x.shape[1]), (wide, x.shape[2]))
    ]
    padded = lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    return padded.reshape(x.shape[0], tall, stride, wide, stride, x.shape[3]).transpose(
        2, 4, 5, 0, 1, 3
    )


def _is_depthwise(settings: Settings, kernel: jax.Array) -> bool:
    return kernel.shape[2] == 1 and kernel.shape[3] == settings.groups


# A grouped convolution is computed in parts of a few neighboring groups. Each part is a dense
# convolution whose kernel is zero between groups. A group of ResNeXt has 4 to 32 channels: so
# narrow a convolution takes longer than the multiplications by zero.


def _parts(settings: Settings, kernel: jax.Array) -> int:
    groups = settings.groups
    joined = max(
        n
        for n in range(1, groups + 1)
        if groups % n == 0 and (n == 1 or n * kernel.shape[2] <= _PART_CHANNELS)
    )
    return groups // joined


def _split(images: jax.Array, parts: int) -> jax.Array:
    """f[N, H, W, C] -> f[parts, N, H, W, C / parts]."""
    return jnp.moveaxis(images.reshape(*images.shape[:3], parts, -1), 3, 0)


def _join(images: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    _, batch, rows, cols, _ = images.shape
    return jnp.moveaxis(images, 0, 3).reshape(batch, rows, cols, -1)


def _split_kernel(kernel: jax.Array, groups: int, parts: int) -> jax.Array:
    """f[kH, kW, I / groups, O] -> dense kernels f[parts, kH, kW, I / parts, O / parts]."""
    height, width, channels, out = kernel.shape
    joined = groups // parts
    blocks = kernel.reshape(height, width, channels, parts, joined, out // groups)
    diagonal = jnp.einsum("hwcpgo,fg->phwfcgo", blocks, jnp.eye(joined, dtype=kernel.dtype))
    return diagonal.reshape(parts, height, width, joined * channels, out // parts)


def _join_kernel(kernels: jax.Array, groups: int) -> jax.Array:
    """The transpose of `_split_kernel`, which drops the values between groups."""
    parts, height, width, channels, out = kernels.shape
    joined = groups // parts
    blocks = kernels.reshape(
        parts, height, width, joined, channels // joined, joined, out // joined
    )
    own = jnp.einsum("phwgcgo->hwcpgo", blocks)
    return own.reshape(height, width, channels // joined, parts * out)
