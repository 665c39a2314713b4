"""Axes of an array on both sides: channels are second in PyTorch and last in JAX, or reversed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of an array on JAX's side correspond to those on PyTorch's.

    Attributes:
        torch: shape on PyTorch's side.
        jax: shape on JAX's side.
        order: PyTorch's axes in JAX's order. Between the first and the last axis, one side may have
            several axes where the other has one, such as N, H, W, C and N, HW, C. The last axis of
            one side may be the other's last two, such as heads and their features.
    """

    torch: tuple[int, ...]
    jax: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def moved(self) -> bool:
        """Whether the order of the axes differs."""
        return self.order != tuple(range(len(self.torch)))

    def to_torch(self, x: np.ndarray) -> np.ndarray:
        """From JAX's axes to PyTorch's."""
        inverse = tuple(int(axis) for axis in np.argsort(self.order))
        return x.reshape(_permuted(self.torch, self.order)).transpose(inverse)

    def to_jax(self, x: np.ndarray) -> np.ndarray:
        """From PyTorch's axes to JAX's."""
        return x.transpose(self.order).reshape(self.jax)


def layouts(torch: tuple[int, ...], jax: tuple[int, ...]) -> list[Layout]:
    """All layouts that fit two shapes; empty if the shapes do not fit each other."""
    if math.prod(torch) != math.prod(jax):
        return []
    return [
        Layout(torch, jax, order)
        for order in _orders(len(torch))
        if _permuted(torch, order) == jax
        or (order != _to_second(len(torch)) and _same_ends(_permuted(torch, order), jax))
    ]


def layouts_of_another_size(torch: tuple[int, ...], jax: tuple[int, ...]) -> list[Layout]:
    """Layouts under which two images or sequences have equal batches and channels only."""
    found = []
    for order in _orders(len(torch)) if len(torch) == len(jax) else ():
        shape = _permuted(torch, order)
        channels = 1 if order == _to_second(len(torch)) else -1
        if (shape[:1], shape[channels]) == (jax[:1], jax[channels]):
            found.append(Layout(torch, shape, order))
    return found


def _permuted(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in order)


def _to_second(ndim: int) -> tuple[int, ...]:
    """The last axis becomes the second, as where PyTorch has channels last and JAX does not."""
    return (0, ndim - 1, *range(1, ndim - 1)) if ndim > 3 else ()


def _orders(ndim: int) -> list[tuple[int, ...]]:
    orders = [tuple(range(ndim))]
    if ndim > 2:
        orders.append((0, *range(2, ndim), 1))
    if ndim > 3:
        orders.append(_to_second(ndim))
    return orders


def _same_ends(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether shapes of as many elements are equal, or one joins axes of the other.

    These are the middle axes, or the last two. Without middle axes, N, C and N, 1, 1, C are also
    the same.
    """
    short, long = sorted((one, other), key=len)
    merged = len(short) < len(long) and 2 <= len(short) <= 3
    heads = len(short) == len(long) - 1 >= 2 and short[:-1] == long[:-2]
    return one == other or heads or (merged and short[0] == long[0] and short[-1] == long[-1])


def best_layout(torch: np.ndarray, jax: np.ndarray) -> Layout | None:
    """The layout under which two arrays differ least; None if no layout fits.

    Where several fit, as for N, 8, 8, 8, the values decide.
    """
    found = layouts(torch.shape, jax.shape)
    if len(found) < 2:
        return found[0] if found else None

    def distance(layout: Layout) -> float:
        with np.errstate(invalid="ignore", over="ignore"):
            return float(np.linalg.norm(layout.to_torch(jax).astype(np.float64) - torch))

    return min(found, key=distance)
