"""An array that the compiler writes to memory once, in place of computing it anew wherever it is used."""

from __future__ import annotations

import jax
from jax import lax


@jax.custom_vjp
def materialize(x: jax.Array) -> jax.Array:
    """`x` itself, and its gradient likewise; on CPUs computed once. For what a residual block, or another long sum, gives.

    XLA for CPUs fuses elementwise operations into each of their uses. Where every block adds to
    what the last one gave, each use of a block's output so computes the sums of all blocks before
    it again: the cost grows with the square of the depth. It drops `optimization_barrier` before it
    fuses, but not a conditional whose condition it cannot know.
    """
    return _stored(x)


def _stored(x: jax.Array) -> jax.Array:
    def on_cpu(x: jax.Array) -> jax.Array:
        # The two branches do the same, but must not look the same to JAX, which would drop the
        # conditional.
        return lax.cond(x.reshape(-1)[0] > 0, lambda x: x, lax.optimization_barrier, x)

    return lax.platform_dependent(x, cpu=on_cpu, default=lambda x: x)


materialize.defvjp(lambda x: (materialize(x), None), lambda _, grad: (_stored(grad),))
