"""Pooling with PyTorch's meaning: of windows, with a gradient that is fast on CPUs too, and of whole images."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_Borders = tuple[tuple[int, int], tuple[int, int]]


def global_average_pool(x: jax.Array) -> jax.Array:
    """Mean of each channel over the image, as `torch.nn.AdaptiveAvgPool2d(1)`; computed in float32.

    Args:
        x: f[N, H, W, C], H and W at least 1.

    Returns:
        [N, 1, 1, C] in the dtype of `x`.
    """
    return x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(x.dtype)


def max_pool(
    x: jax.Array, kernel_size: int, stride: int, padding: int = 0, *, ceil_mode: bool = False
) -> jax.Array:
    """Largest value of each window, as `torch.nn.functional.max_pool2d`; both borders are padded with minus infinity.

    Args:
        x: f[N, H, W, C].
        kernel_size: window height and width, at least 1.
        stride: at least 1.
        padding: 0 to kernel_size / 2.
        ceil_mode: keep a last window that runs over the border, if it starts inside the image or
            its left padding.

    Returns:
        f[N, h, w, C] with h = (H + 2 padding - kernel_size) // stride + 1, the division rounded up
        with `ceil_mode`.

    Raises:
        ValueError: no window fits the image.
    """

    def windows(size: Any) -> Any:
        if not ceil_mode:
            return (size + 2 * padding - kernel_size) // stride + 1
        found = -(-(size + 2 * padding - kernel_size) // stride) + 1
        return found - ((found - 1) * stride >= size + padding)

    def borders(size: int) -> tuple[int, int]:
        if not ceil_mode:
            return padding, padding
        return padding, max(padding, (windows(size) - 1) * stride + kernel_size - size - padding)

    if windows(min(x.shape[1:3])) < 1:
        raise ValueError(
            f"no window of {kernel_size}x{kernel_size} fits an image of {x.shape[1]}x{x.shape[2]} pixels with a border of {padding}; "
            "give it a larger image"
        )
    return _pool(x, kernel_size, stride, (borders(x.shape[1]), borders(x.shape[2])))


def _reduce_window(x: jax.Array, kernel_size: int, stride: int, borders: _Borders) -> jax.Array:
    lowest = np.asarray(-np.inf, x.dtype)
    window, strides = (1, kernel_size, kernel_size, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, lowest, lax.max, window, strides, ((0, 0), *borders, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pool(x: jax.Array, kernel_size: int, stride: int, borders: _Borders) -> jax.Array:
    """XLA runs its own windows an element at a time on CPUs, four times as long as the maximum of what each tap sees."""
    return lax.platform_dependent(
        x,
        cpu=lambda x: functools.reduce(jnp.maximum, _taps(x, kernel_size, stride, borders)),
        default=lambda x: _reduce_window(x, kernel_size, stride, borders),
    )


def _pool_fwd(
    x: jax.Array, kernel_size: int, stride: int, borders: _Borders
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The result, and what each form of the gradient wants: the winners, and the input. The compiler drops the other one."""
    y, winner = lax.platform_dependent(
        x,
        tpu=lambda x: _without_winners(x, kernel_size, stride, borders),
        default=lambda x: _with_winners(x, kernel_size, stride, borders),
    )
    return y, (winner, x)


def _pool_bwd(
    kernel_size: int,
    stride: int,
    borders: _Borders,
    residuals: tuple[jax.Array, jax.Array],
    grad: jax.Array,
) -> tuple[jax.Array]:
    """Gradient without XLA's select-and-scatter, one element at a time on CPUs, by which a pool takes 3.6 times as long on an H100.

    But by it on TPUs, where the form without it would move ten times as many bytes (`python -m
    benchmarks.tpu_aot`). Both give the gradient to the first of equal pixels.
    """
    winner, x = residuals
    return (
        lax.platform_dependent(
            winner,
            x,
            grad,
            tpu=lambda winner, x, grad: jax.vjp(
                lambda x: _reduce_window(x, kernel_size, stride, borders), x
            )[1](grad)[0],
            cpu=lambda winner, x, grad: _gradient_from_winners(
                winner, grad, x.shape, kernel_size, stride, borders
            ),
            default=lambda winner, x, grad: _gradient_by_offsets(
                winner, grad, x.shape, kernel_size, stride, borders
            ),
        ),
    )


_pool.defvjp(_pool_fwd, _pool_bwd)


def _winner_dtype(kernel_size: int) -> Any:
    return jnp.uint8 if kernel_size <= 16 else jnp.int32


def _without_winners(
    x: jax.Array, kernel_size: int, stride: int, borders: _Borders
) -> tuple[jax.Array, jax.Array]:
    y = _reduce_window(x, kernel_size, stride, borders)
    return y, jnp.zeros(y.shape, _winner_dtype(kernel_size))


def _with_winners(
    x: jax.Array, kernel_size: int, stride: int, borders: _Borders
) -> tuple[jax.Array, jax.Array]:
    """The result, and which of its window's pixels each maximum is: the first in reading order, as in PyTorch.

    The pixel is found by comparing the window's pixels with each other. To look for the one that
    equals the maximum would not do: XLA may compute the input anew in each place where it is used,
    and round it in different ways.
    """
    first, *others = _taps(x, kernel_size, stride, borders)
    largest, winner = first, jnp.zeros(first.shape, jnp.int32)
    for number, tap in enumerate(others, 1):
        winner = jnp.where(tap > largest, number, winner)
        largest = jnp.maximum(tap, largest)
    return largest, winner.astype(_winner_dtype(kernel_size))


def _taps(x: jax.Array, kernel_size: int, stride: int, borders: _Borders) -> list[jax.Array]:
    """What each tap of a window sees, in reading order: kernel_size^2 of f[N, h, w, C], slices of the padded images."""
    rows, cols = (
        (size + sum(border) - kernel_size) // stride + 1
        for size, border in zip(x.shape[1:3], borders, strict=True)
    )
    padded = lax.pad(
        x,
        np.asarray(-np.inf, x.dtype),
        ((0, 0, 0), *((*border, 0) for border in borders), (0, 0, 0)),
    )
    return [
        padded[
            :, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (cols - 1) + 1 : stride
        ]
        for i, j in np.ndindex(kernel_size, kernel_size)
    ]


def _gradient_from_winners(
    winner: jax.Array,
    grad: jax.Array,
    shape: tuple[int, ...],
    kernel_size: int,
    stride: int,
    borders: _Borders,
) -> jax.Array:
    """Each pixel's sum over the windows that it may lie in of the gradients of those that it won: one loop without branches."""
    reach = -(-kernel_size // stride)
    offset = np.arange(stride)
    won, share = (_with_margins(x, reach - 1) for x in (winner, grad))
    total: Any = 0
    for down, across in np.ndindex(reach, reach):
        # Which of the window's pixels this is: of the window that begins so many windows further up
        # and to the left.
        i, j = offset[:, None] + down * stride, offset + across * stride
        number = np.where((i < kernel_size) & (j < kernel_size), i * kernel_size + j, -1).reshape(
            1, 1, stride, 1, stride, 1
        )
        window = _shifted(winner.shape, reach, down, across)
        total += jnp.where(
            won[window][:, :, None, :, None].astype(jnp.int32) == number,
            share[window][:, :, None, :, None],
            0,
        )
    return _without_margins(total, shape, borders)


def _gradient_by_offsets(
    winner: jax.Array,
    grad: jax.Array,
    shape: tuple[int, ...],
    kernel_size: int,
    stride: int,
    borders: _Borders,
) -> jax.Array:
    """The same, with a sum for each place in a stride x stride cell over just the windows that reach it, and the margins stored.

    On an H100 a 3x3 pool takes 0.31 ms so, forward and backward, in place of 0.49 ms (`python -m
    benchmarks.forms`).
    """
    reach = -(-kernel_size // stride)
    # The barrier before the margins, or the forward pass would be computed once more to write the
    # winners with them.
    won, share = lax.optimization_barrier(
        tuple(_with_margins(x, reach - 1) for x in (lax.optimization_barrier(winner), grad))
    )
    cells = []
    for row, col in np.ndindex(stride, stride):
        total: Any = jnp.zeros((), grad.dtype)
        for down, across in np.ndindex(reach, reach):
            i, j = row + down * stride, col + across * stride
            if i < kernel_size and j < kernel_size:
                window = _shifted(winner.shape, reach, down, across)
                total += jnp.where(won[window] == i * kernel_size + j, share[window], 0)
        cells.append(total)
    rows, cols = (windows + reach - 1 for windows in winner.shape[1:3])
    cells = [jnp.broadcast_to(cell, (shape[0], rows, cols, shape[3])) for cell in cells]
    lines = [jnp.stack(cells[i : i + stride], 3) for i in range(0, stride * stride, stride)]
    return _without_margins(jnp.stack(lines, 2), shape, borders)


def _with_margins(x: jax.Array, margin: int) -> jax.Array:
    """Windows [N, h, w, C] with zeros around them, for the taps that reach into the next one."""
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def _shifted(shape: tuple[int, ...], reach: int, down: int, across: int) -> tuple[slice, ...]:
    """Of windows with their margins, where those lie that begin so many windows further up and to the left."""
    up, left = reach - 1 - down, reach - 1 - across
    return np.s_[:, up : up + shape[1] + reach - 1, left : left + shape[2] + reach - 1]


def _without_margins(total: jax.Array, shape: tuple[int, ...], borders: _Borders) -> jax.Array:
    """Cells f[N, h, stride, w, stride, C] -> images of a shape [N, H, W, C], less the borders that the pool had put around them."""
    batch, height, stride, width, _, channels = total.shape
    (top, _), (left, _) = borders
    edges = (
        (0, 0, 0),
        (-top, top + shape[1] - stride * height, 0),
        (-left, left + shape[2] - stride * width, 0),
        (0, 0, 0),
    )
    return lax.pad(
        total.reshape(batch, stride * height, stride * width, channels),
        np.zeros((), total.dtype),
        edges,
    )
