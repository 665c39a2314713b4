"""Weights that training does not change."""

from __future__ import annotations

from flax import nnx


class Buffer(nnx.BatchStat):
    """A fixed array among the weights of a network, such as a bilinear kernel.

    It is converted, saved and loaded like a parameter. It has no gradient, no decay and no
    optimizer state: training treats it as a statistic that nothing updates.
    """
