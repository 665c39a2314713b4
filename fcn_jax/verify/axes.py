"""Orders of a tensor's axes: PyTorch's against those of JAX's libraries."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator

import numpy as np

from fcn_jax.pytorch.rules import Op

_KERNELS = ("kernel", "w")
"""Names of weights whose output channels are last, as in Flax."""


@dataclasses.dataclass(frozen=True)
class Axes:
    """How a tensor becomes a leaf.

    Attributes:
        torch: PyTorch's shape.
        order: PyTorch's axes in JAX's order.
        jax: JAX's shape, which may have several axes for one, such as heads.
        flipped: whether the spatial axes are mirrored.
    """

    torch: tuple[int, ...]
    order: tuple[int, ...]
    jax: tuple[int, ...]
    flipped: bool = False

    def to_jax(self, x: np.ndarray) -> np.ndarray:
        """From PyTorch's axes to JAX's."""
        return self._mirrored(x).transpose(self.order).reshape(self.jax)

    def to_torch(self, x: np.ndarray) -> np.ndarray:
        """From JAX's axes to PyTorch's."""
        inverse = tuple(int(axis) for axis in np.argsort(self.order))
        shape = tuple(self.torch[axis] for axis in self.order)
        return self._mirrored(x.reshape(shape).transpose(inverse))

    def _mirrored(self, x: np.ndarray) -> np.ndarray:
        return np.flip(x, tuple(range(2, x.ndim))) if self.flipped else x

    @property
    def op(self) -> Op:
        """The two directions."""
        flip = ", mirrored" if self.flipped else ""
        return Op(
            f"axes {self.order} of {self.torch} as {self.jax}{flip}", self.to_jax, self.to_torch
        )


def is_kernel(path: str) -> bool:
    """Whether a weight's output channels are last, by its name."""
    return path.rpartition(".")[2] in _KERNELS


def fitting(
    torch: tuple[int, ...], jax: tuple[int, ...], path: str, *, flipped: bool = False
) -> list[Axes]:
    """Orders of axes that give a tensor JAX's shape, the likeliest first.

    Kernels of Flax have their output channels last, weights of Equinox have PyTorch's axes.

    Args:
        torch: PyTorch's shape.
        jax: JAX's shape.
        path: JAX's name.
        flipped: whether it is the kernel of a transposed convolution that JAX does not mirror.
            Its first two axes are input and output channels in PyTorch.
    """
    jax = tuple(jax)
    spatial = tuple(range(2, len(torch)))
    orders: list[tuple[int, ...]] = [tuple(range(len(torch)))]
    if flipped:
        orders = [(*spatial, 0, 1), (1, 0, *spatial)]
    elif len(torch) >= 2:
        orders += [(*spatial, 1, 0), (*spatial, 0, 1)] if spatial else [(1, 0)]
        if is_kernel(path):
            orders = [*orders[1:], orders[0]]
    shapes = {order: tuple(torch[axis] for axis in order) for order in orders}
    exact = [order for order, shape in shapes.items() if shape == jax]
    # Heads, and axes of length 1.
    merged = [order for order, shape in shapes.items() if splits(shape, jax)]
    return [Axes(torch, order, jax, flipped) for order in exact or merged]


def splits(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether one shape splits axes of the other, such as [N, heads x D] and [N, heads, D]."""
    if math.prod(one) != math.prod(other):
        return False
    ends, others = (set(itertools.accumulate(s, operator.mul)) | {1} for s in (one, other))
    return ends <= others or others <= ends
