"""SubpixelLogits one after another, of which many equal ones in a row can be one loop."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fcn_jax.nn import _valid
from fcn_jax.nn._batch_norm import MOMENTS
from fcn_jax.nn._conv import CONV_OUTPUT

LEAST = 6
"""Equal blocks in a row that become a loop unless told otherwise: of fewer, computing again costs more than the program that is saved."""

MOST = 24
"""SubpixelLogits in one loop. It holds its parameters' copy, their gradients and what its steps hand on until its end: two halves hold less."""

_LOOPS: contextvars.ContextVar[bool] = contextvars.ContextVar("loops", default=False)


def in_turn(blocks: Sequence[nnx.Module], x: jax.Array, least: int = LEAST) -> jax.Array:
    """`blocks[-1](... blocks[0](x))`.

    Inside of `loops` at least `least` blocks in a row that differ in nothing but the values of
    their variables are the body of a loop: compiled once, in a fraction of the time and to a
    fraction of the program, at the cost of a copy of their parameters. What the steps of a loop
    hand on to its backward pass is stored, so that is kept small: the inputs of the blocks,
    moments, and the convolutions' outputs, but for those of 1x1 ones to more channels, which are
    larger than what they are computed from. The rest is computed again. SubpixelLogits that have a
    variable in common, or change the shape or dtype of `x`, are called one by one.

    Args:
        blocks: each f[N, H, W, I] -> f[N, h, w, O]; their statistics are updated as by calling
            them.
        x: f[N, H, W, I] of the first.
        least: how many make a loop, at least 2. A network that has one long row may have its short
            ones made loops as well.
    """
    # Sizes are derived block by block, and would be a loop body's own.
    if not _LOOPS.get() or _valid.told():
        return _line(blocks, x)
    parts = [(block, *nnx.split(block)) for block in blocks]
    for (graphdef, _), group in itertools.groupby(parts, lambda part: (part[1], _shapes(part[2]))):
        equal = [block for block, *_ in group]
        if len(equal) < least or not _apart(equal) or not _keeps(graphdef, equal[0], x):
            x = _line(equal, x)
            continue
        count = -(-len(equal) // MOST)
        for i in range(count):
            x = _loop(graphdef, equal[len(equal) * i // count : len(equal) * (i + 1) // count], x)
    return x


@contextlib.contextmanager
def loops(enabled: bool) -> Iterator[None]:
    """Have `in_turn` make loops, or not, in what is traced inside."""
    token = _LOOPS.set(enabled)
    try:
        yield
    finally:
        _LOOPS.reset(token)


def _line(blocks: Sequence[nnx.Module], x: jax.Array) -> jax.Array:
    for block in blocks:
        x = block(x)
    return x


def _shapes(state: Any) -> tuple[Any, ...]:
    return tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state))


def _apart(blocks: Sequence[nnx.Module]) -> bool:
    """Whether no block has a variable in common with another, or is there twice."""
    variables = [
        {id(node) for _, node in nnx.iter_graph(block) if isinstance(node, nnx.Variable)}
        for block in blocks
    ]
    return len({id(block) for block in blocks}) == len(blocks) and len(
        set().union(*variables)
    ) == sum(map(len, variables))


def _keeps(graphdef: Any, block: nnx.Module, x: jax.Array) -> bool:
    """Whether the block's result has its input's shape and dtype."""
    y = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), nnx.state(block), x)
    return (y.shape, y.dtype) == (x.shape, x.dtype)


def _loop(graphdef: Any, blocks: Sequence[nnx.Module], x: jax.Array) -> jax.Array:
    @functools.partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.save_only_these_names(CONV_OUTPUT, MOMENTS),
        prevent_cse=False,  # a loop's body is not merged with another
    )
    def body(x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        block = nnx.merge(graphdef, state)
        y = block(x)
        return y, nnx.state(block, nnx.Not(nnx.Param))

    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(nnx.state(block) for block in blocks)
    )
    y, changed = lax.scan(body, x, stacked, length=len(blocks))
    for i, block in enumerate(blocks):
        nnx.update(block, jax.tree.map(lambda leaf, i=i: leaf[i], changed))
    return y
