"""Weights that no training changes."""

from __future__ import annotations

from flax import nnx


class Buffer(nnx.BatchStat):
    """An array that is part of a network's weights, but fixed: a bilinear kernel, for one.

    It is converted, saved and loaded like a parameter. Training takes it for a statistic that
    nothing updates: it has no gradient, no decay and no optimizer state.
    """
