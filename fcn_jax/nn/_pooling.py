"""Max pooling and average pooling, as in PyTorch; their gradients are fast on CPUs too."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from fcn_jax.nn._split_rows import block_rows


class _Window(NamedTuple):
    """Kernel size, stride, and the padding ((top, bottom), (left, right))."""

    size: int
    stride: int
    borders: tuple[tuple[int, int], tuple[int, int]]


def global_average_pool(x: Float[Array, "N H W C"]) -> Float[Array, "N 1 1 C"]:
    """Mean of each channel over the image, computed in float32; `torch.nn.AdaptiveAvgPool2d(1)`.

    Args:
        x: f[N, H, W, C], H and W at least 1.

    Returns:
        [N, 1, 1, C] in the dtype of `x`.
    """
    return x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(x.dtype)


def adaptive_average_pool(
    x: Float[Array, "N H W C"], size: tuple[int, int]
) -> Float[Array, "N {size[0]} {size[1]} C"]:
    """Means of the bins of a grid, computed in float32; `torch.nn.AdaptiveAvgPool2d(size)`.

    Of n bins over a side of H pixels, bin i has the pixels from floor(i H / n) to, but not
    including, ceil((i + 1) H / n). Neighboring bins overlap by a pixel if n does not divide H.

    Args:
        x: f[N, H, W, C], H and W at least 1.
        size: height h and width w of the grid, at least 1.

    Returns:
        [N, h, w, C] in the dtype of `x`.

    Raises:
        ValueError: a side of `x` or `size` is 0.
    """
    if min(*x.shape[1:3], *size) < 1:
        raise ValueError(
            f"cannot pool {x.shape[1]}x{x.shape[2]} pixels to {size[0]}x{size[1]}: each side must "
            "be at least 1"
        )
    down, across = (_bin_means(*sides) for sides in zip(x.shape[1:3], size, strict=True))
    # Two products with small matrices: XLA has no pooling with windows of several sizes.
    y = jnp.einsum("uh,nhwc->nuwc", down, x.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    y = jnp.einsum("vw,nuwc->nuvc", across, y, precision=lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def _bin_means(length: int, bins: int) -> np.ndarray:
    """Matrix [bins, length]: in each row the same weight for all pixels of a bin; sum 1."""
    start, pixel = np.arange(bins)[:, None], np.arange(length)
    inside = (pixel >= start * length // bins) & (pixel < -(-(start + 1) * length // bins))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def max_pool(
    x: Float[Array, "N H W C"],
    kernel_size: int,
    stride: int,
    padding: int = 0,
    *,
    ceil_mode: bool = False,
) -> Float[Array, "N h w C"]:
    """Maximum of each window, as `torch.nn.functional.max_pool2d`.

    Both borders are padded with minus infinity. The gradient goes to the first of equal pixels.

    Args:
        x: f[N, H, W, C].
        kernel_size: window height and width, at least 1.
        stride: at least 1.
        padding: 0 to kernel_size / 2.
        ceil_mode: keep a last window that extends past the border, if it starts inside the image or
            its left padding.

    Returns:
        f[N, h, w, C] with h = (H + 2 padding - kernel_size) // stride + 1. With `ceil_mode` the
        division rounds up.

    Raises:
        ValueError: no window fits the image.
    """

    def windows(size: int) -> int:
        if not ceil_mode:
            return (size + 2 * padding - kernel_size) // stride + 1
        found = -(-(size + 2 * padding - kernel_size) // stride) + 1
        return found - ((found - 1) * stride >= size + padding)

    def border(size: int) -> tuple[int, int]:
        if not ceil_mode:
            return padding, padding
        return padding, max(padding, (windows(size) - 1) * stride + kernel_size - size - padding)

    if windows(min(x.shape[1:3])) < 1:
        raise ValueError(
            f"a pooling window of {kernel_size}x{kernel_size} does not fit an image of "
            f"{x.shape[1]}x{x.shape[2]} pixels with padding {padding}; use a larger image"
        )
    borders = border(x.shape[1]), border(x.shape[2])
    return _pool(x, _Window(kernel_size, stride, borders))


def _reduce_window(window: _Window, x: jax.Array) -> jax.Array:
    lowest = np.asarray(-np.inf, x.dtype)
    shape, strides = (1, window.size, window.size, 1), (1, window.stride, window.stride, 1)
    return lax.reduce_window(x, lowest, lax.max, shape, strides, ((0, 0), *window.borders, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(x: jax.Array, window: _Window) -> jax.Array:
    # On CPUs XLA's reduce_window runs one element at a time and takes four times as long.
    return lax.platform_dependent(
        x,
        cpu=lambda x: functools.reduce(jnp.maximum, _taps(window, x)),
        default=functools.partial(_reduce_window, window),
    )


def _pool_fwd(x: jax.Array, window: _Window) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # One form of the gradient needs the winners, the other the input. XLA drops the unused one.
    y, winner = lax.platform_dependent(
        x,
        tpu=functools.partial(_without_winners, window),
        default=functools.partial(_with_winners, window),
    )
    return y, (winner, x)


def _pool_bwd(
    window: _Window, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array]:
    """The gradient by XLA's select-and-scatter on TPUs, and by the winners on other devices.

    Select-and-scatter takes 3.6 times as long on an H100, and runs one element at a time on CPUs.
    On TPUs the other form would move ten times as many bytes (`python -m benchmarks.tpu_aot`).
    """
    return (
        lax.platform_dependent(
            *residuals,
            grad,
            tpu=functools.partial(_gradient_by_scatter, window),
            default=functools.partial(_gradient_from_winners, window),
        ),
    )


_pool.defvjp(_pool_fwd, _pool_bwd)


def _winner_dtype(window: _Window) -> Any:
    return jnp.uint8 if window.size <= 16 else jnp.int32


def _without_winners(window: _Window, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = _reduce_window(window, x)
    return y, jnp.zeros(y.shape, _winner_dtype(window))


def _with_winners(window: _Window, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maxima, and the position of each within its window: the first in reading order.

    The position comes from comparing the pixels of the window with each other. Searching for the
    pixel that equals the maximum would be wrong: XLA may compute the input again for each use, with
    different rounding.
    """
    first, *others = _taps(window, x)
    largest, winner = first, jnp.zeros(first.shape, jnp.int32)
    for number, tap in enumerate(others, 1):
        winner = jnp.where(tap > largest, number, winner)
        largest = jnp.maximum(tap, largest)
    return largest, winner.astype(_winner_dtype(window))


def _taps(window: _Window, x: jax.Array) -> list[jax.Array]:
    """For each position in a window, in reading order, its pixels in all windows: f[N, h, w, C]."""
    size, stride, borders = window
    rows, cols = (
        (length + sum(border) - size) // stride + 1
        for length, border in zip(x.shape[1:3], borders, strict=True)
    )
    edges = ((0, 0, 0), *((*border, 0) for border in borders), (0, 0, 0))
    padded = lax.pad(x, np.asarray(-np.inf, x.dtype), edges)
    return [
        padded[
            :, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (cols - 1) + 1 : stride
        ]
        for i, j in np.ndindex(size, size)
    ]


def _gradient_by_scatter(
    window: _Window, winner: jax.Array, x: jax.Array, grad: jax.Array
) -> jax.Array:
    return jax.vjp(functools.partial(_reduce_window, window), x)[1](grad)[0]


def _gradient_from_winners(
    window: _Window, winner: jax.Array, x: jax.Array, grad: jax.Array
) -> jax.Array:
    """For each pixel, the sum of the gradients of the windows whose maximum it is.

    One fused loop without branches, over cells of stride x stride pixels.
    """
    size, stride, ((top, _), (left, _)) = window
    batch, height, width, channels = x.shape
    reach = -(-size // stride)  # windows that a cell lies in, per side
    rows, cols = (windows + reach - 1 for windows in winner.shape[1:3])
    more, rows = block_rows(rows) - rows, block_rows(rows)
    margin = ((0, 0), (reach - 1, reach - 1 + more), (reach - 1, reach - 1), (0, 0))
    won, share = jnp.pad(winner, margin), jnp.pad(grad, margin)
    offset = np.arange(stride)
    total: Any = 0
    for down, across in np.ndindex(reach, reach):
        # The position of each pixel in the window that begins so many windows further up and left.
        i, j = offset[:, None] + down * stride, offset + across * stride
        number = np.where((i < size) & (j < size), i * size + j, -1)
        up, before = reach - 1 - down, reach - 1 - across
        part = np.s_[:, up : up + rows, None, before : before + cols, None]
        total += jnp.where(
            won[part].astype(jnp.int32) == number.reshape(1, 1, stride, 1, stride, 1),
            share[part],
            0,
        )
    cells = total.reshape(batch, stride * rows, stride * cols, channels)
    edges = (
        (0, 0, 0),
        (-top, top + height - stride * rows, 0),
        (-left, left + width - stride * cols, 0),
        (0, 0, 0),
    )
    return lax.pad(cells, np.zeros((), cells.dtype), edges)
