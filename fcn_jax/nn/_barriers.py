"""What is stored and what is computed again: barriers for XLA on CPUs, and names for remat."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

CONV_OUTPUT = "fcn_jax.conv"
MOMENTS = "fcn_jax.moments"
REMAT_NAMES = (CONV_OUTPUT, MOMENTS)
"""Names of the values that `optim.remat` keeps, for `jax.checkpoint_policies`.

They are the outputs of convolutions, and the mean and variance of each batch normalization.
"""


def residual_add(
    y: Float[Array, "*S"],
    shortcut: Float[Array, "*S"],
    activation: Callable[[jax.Array], jax.Array] | None = None,
) -> Float[Array, "*S"]:
    """The end of a residual block: `activation(y + shortcut)`, f[...]; no activation if None.

    The result is computed once on CPUs too: see `fusion_barrier`.
    """
    total = y + shortcut
    return fusion_barrier(total if activation is None else activation(total))


@jax.custom_vjp
def fusion_barrier(x: jax.Array) -> jax.Array:
    """Return `x` f[...], not empty. On CPUs XLA computes it and its gradient once.

    XLA for CPUs fuses elementwise operations into each of their uses. Where every block adds to the
    output of the one before, each use of an output would compute the sums of all blocks before it
    again: the cost would grow with the square of the depth. XLA drops `optimization_barrier` before
    it fuses, but not a conditional whose condition is unknown.
    """
    return stored(x)


def stored(x: jax.Array) -> jax.Array:
    """Return `x` f[...], not empty, which XLA for CPUs computes once and stores."""

    def on_cpu(x: jax.Array) -> jax.Array:
        # The branches compute the same, but must differ: JAX would drop the conditional.
        return lax.cond(x.reshape(-1)[0] > 0, lambda x: x, lax.optimization_barrier, x)

    return lax.platform_dependent(x, cpu=on_cpu, default=lambda x: x)


fusion_barrier.defvjp(lambda x: (fusion_barrier(x), None), lambda _, grad: (stored(grad),))


def remat_barrier(x: jax.Array, stored: jax.Array) -> jax.Array:
    """Return `x` f32[...] as a value that XLA computes again instead of keeping.

    Without it, XLA merges the transforms of the backward pass with the same ones of the forward
    pass, and keeps their result in memory in between. XLA for CPUs drops `optimization_barrier`,
    which is meant for this, before it merges. This is a product with 1 that XLA cannot see through;
    LLVM can, and removes it from each loop.

    Args:
        x: the array to be transformed.
        stored: f32[...], not empty, in memory in any case: its first element is read.
    """
    bits = lax.bitcast_convert_type(stored.reshape(-1)[0], jnp.uint32)
    return x * ((bits | 1) & 1).astype(x.dtype)
