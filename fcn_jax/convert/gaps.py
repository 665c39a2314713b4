"""Initial values for what a weights file leaves open, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


def draw_gaps(module: nnx.Module, build: Callable[[], nnx.Module], which: Any = ...) -> None:
    """Give the variables that are shapes, as `nnx.eval_shape` left them, their initial values, in place.

    Drawing a whole network takes longer than loading it, and its memory once more. Under jit XLA
    leaves out what is not asked for; the values are those that `build` gives without.

    Args:
        module: what `nnx.eval_shape(build)` gave, filled in part.
        build: makes the same network with values.
        which: filter of NNX's; other variables stay as they are.
    """
    gaps = {
        path: leaf for path, leaf in nnx.to_flat_state(nnx.state(module, which)) if _is_shape(leaf)
    }
    if gaps:
        for leaf, value in zip(
            gaps.values(), jax.jit(lambda: _values(build(), gaps))(), strict=True
        ):
            leaf.set_value(value)


def _is_shape(leaf: nnx.Variable) -> bool:
    return isinstance(leaf.get_value(), jax.ShapeDtypeStruct)


def _values(module: nnx.Module, paths: Any) -> list[jax.Array]:
    found = dict(nnx.to_flat_state(nnx.state(module)))
    return [found[path].get_value() for path in paths]
