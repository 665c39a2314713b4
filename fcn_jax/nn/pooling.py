"""Max pooling with PyTorch's padding, and a gradient that is fast on CPUs too."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_Borders = tuple[tuple[int, int], tuple[int, int]]


def max_pool(x: jax.Array, kernel_size: int, stride: int, padding: int = 0, *, ceil_mode: bool = False) -> jax.Array:
    """Largest value of each window, as `torch.nn.functional.max_pool2d`; both borders are padded with minus infinity.

    Args:
        x: f[N, H, W, C].
        kernel_size: window height and width, at least 1.
        stride: at least 1.
        padding: 0 to kernel_size / 2.
        ceil_mode: keep a last window that runs over the border, if it starts inside the image or its left padding.

    Returns:
        f[N, h, w, C] with h = (H + 2 padding - kernel_size) // stride + 1, the division rounded up with `ceil_mode`.
    """

    def borders(size: int) -> tuple[int, int]:
        if not ceil_mode:
            return padding, padding
        windows = -(-(size + 2 * padding - kernel_size) // stride) + 1
        if (windows - 1) * stride >= size + padding:
            windows -= 1
        return padding, max(padding, (windows - 1) * stride + kernel_size - size - padding)

    return _pool(x, kernel_size, stride, (borders(x.shape[1]), borders(x.shape[2])))


def _reduce_window(x: jax.Array, kernel_size: int, stride: int, borders: _Borders) -> jax.Array:
    lowest = np.asarray(-np.inf, x.dtype)
    window, strides = (1, kernel_size, kernel_size, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, lowest, lax.max, window, strides, ((0, 0), *borders, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pool(x: jax.Array, kernel_size: int, stride: int, borders: _Borders) -> jax.Array:
    return _reduce_window(x, kernel_size, stride, borders)


def _pool_fwd(x: jax.Array, kernel_size: int, stride: int, borders: _Borders) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _reduce_window(x, kernel_size, stride, borders)
    return y, (x, y)


def _pool_bwd(
    kernel_size: int, stride: int, borders: _Borders, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array]:

    def by_xla(x: jax.Array, y: jax.Array, grad: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _reduce_window(x, kernel_size, stride, borders), x)[1](grad)[0]

    def by_phases(x: jax.Array, y: jax.Array, grad: jax.Array) -> jax.Array:
        return _grad_by_phases(x, y, grad, kernel_size, stride, borders)

    return (lax.platform_dependent(*residuals, grad, cpu=by_phases, default=by_xla),)


def _grad_by_phases(x: jax.Array, y: jax.Array, grad: jax.Array, kernel_size: int, stride: int, borders: _Borders) -> jax.Array:
    """Gradient without XLA's select-and-scatter, which runs one element at a time on CPUs.

    A window's gradient goes to the first of its pixels, in reading order, that equals its maximum, as in PyTorch. Pixels whose
    coordinates leave the same remainders by the stride make up a phase; in each phase the windows' contributions only have to be
    shifted by whole windows and added, and the phases interleave to the whole.
    """
    rows, cols = y.shape[1:3]
    # Whole windows in every phase, with a margin for the taps that reach into the next window.
    reach = -(-kernel_size // stride)
    size = (stride * (rows + reach - 1), stride * (cols + reach - 1))
    (top, _), (left, _) = borders
    lowest = np.asarray(-np.inf, x.dtype)
    # Negative where the image goes on past the last window: those pixels are cut off here, and get zeros at the end.
    bottom, right = size[0] - top - x.shape[1], size[1] - left - x.shape[2]
    padded = lax.pad(x, lowest, ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))
    phases: list[list[jax.Array | None]] = [[None] * stride for _ in range(stride)]
    free = jnp.ones(y.shape, bool)
    for i in range(kernel_size):
        for j in range(kernel_size):
            tap = padded[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (cols - 1) + 1 : stride]
            hit = free & (tap == y)
            free &= ~hit
            down, across = i // stride, j // stride
            margins = ((0, 0), (down, reach - 1 - down), (across, reach - 1 - across), (0, 0))
            share = jnp.pad(jnp.where(hit, grad, 0), margins)
            so_far = phases[i % stride][j % stride]
            phases[i % stride][j % stride] = share if so_far is None else so_far + share
    whole = _interleave(phases, (x.shape[0], *size, x.shape[3]), x.dtype)
    return lax.pad(whole, np.zeros((), x.dtype), ((0, 0, 0), (-top, -bottom, 0), (-left, -right, 0), (0, 0, 0)))


def _interleave(phases: Sequence[Sequence[jax.Array | None]], shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """Phases [row][column] of f[N, h, w, C], None for zeros, -> f[N, stride h, stride w, C]."""
    stride = len(phases)
    zeros = jnp.zeros((shape[0], shape[1] // stride, shape[2] // stride, shape[3]), dtype)
    lines = [jnp.stack([zeros if phase is None else phase for phase in line], axis=3) for line in phases]
    return jnp.stack(lines, axis=2).reshape(shape)


_pool.defvjp(_pool_fwd, _pool_bwd)
