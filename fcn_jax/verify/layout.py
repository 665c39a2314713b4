"""Axes of an array on both sides: PyTorch's channels are second, JAX's usually last."""

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
        moved: whether PyTorch's axis 1 is JAX's last. Between the first and the last axis, one side
            may have several axes where the other has one, such as N, H, W, C and N, HW, C.
    """

    torch: tuple[int, ...]
    jax: tuple[int, ...]
    moved: bool

    def to_torch(self, x: np.ndarray) -> np.ndarray:
        """From JAX's axes to PyTorch's."""
        if not self.moved:
            return x.reshape(self.torch)
        first, channels, *rest = self.torch
        return np.moveaxis(x.reshape(first, *rest, channels), -1, 1)

    def to_jax(self, x: np.ndarray) -> np.ndarray:
        """From PyTorch's axes to JAX's."""
        return (np.moveaxis(x, 1, -1) if self.moved else x).reshape(self.jax)


def layouts(torch: tuple[int, ...], jax: tuple[int, ...]) -> list[Layout]:
    """All layouts that fit two shapes; empty if the shapes do not fit each other."""
    if math.prod(torch) != math.prod(jax):
        return []
    moved = (torch[0], *torch[2:], torch[1]) if len(torch) > 2 else None
    orders = {False: torch, True: moved}
    return [
        Layout(torch, jax, is_moved)
        for is_moved, order in orders.items()
        if order is not None and _same_ends(order, jax)
    ]


def layouts_of_another_size(torch: tuple[int, ...], jax: tuple[int, ...]) -> list[Layout]:
    """Layouts under which two images or sequences have equal batches and channels only."""
    orders = {False: torch, True: (torch[0], *torch[2:], torch[1]) if len(torch) > 2 else torch[:0]}
    return [
        Layout(torch, order, is_moved)
        for is_moved, order in orders.items()
        if len(order) == len(jax) and (order[:1], order[-1:]) == (jax[:1], jax[-1:])
    ]


def _same_ends(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether shapes of as many elements are equal, or one has the middle axes of the other as one.

    Without middle axes, N, C and N, 1, 1, C are also the same.
    """
    short, long = sorted((one, other), key=len)
    merged = len(short) < len(long) and 2 <= len(short) <= 3
    return one == other or (merged and short[0] == long[0] and short[-1] == long[-1])


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
