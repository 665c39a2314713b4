"""Gradient checkpointing by block: the backward pass computes each block again from its input.

Chen et al. 2016, arXiv:1604.06174.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

_RECOMPUTED: contextvars.ContextVar[bool] = contextvars.ContextVar("recomputed", default=False)


@contextlib.contextmanager
def recompute_blocks(on: bool = True) -> Iterator[None]:
    """Within it, trace networks whose backward pass computes the blocks again (if `on`)."""
    token = _RECOMPUTED.set(on)
    try:
        yield
    finally:
        _RECOMPUTED.reset(token)


def call_block(block: Callable[..., jax.Array], x: jax.Array, *others: Any) -> jax.Array:
    """Return `block(x, *others)`, the result of a block of a backbone.

    Backbones call their blocks by this function, so that `optim.remat = "blocks"` keeps only the
    input of each block for the backward pass.

    Args:
        block: an `nnx.Module`.
        x: the input that has a gradient.
        others: further arguments, which have none.
    """
    if not _RECOMPUTED.get():
        return block(x, *others)
    found: jax.Array = nnx.remat(lambda block, x: block(x, *others))(block, x)
    return found
