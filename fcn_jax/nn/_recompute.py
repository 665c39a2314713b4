"""An array from which is computed again what would else be kept; the opposite of `fcn_jax.nn._materialize`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def remat_barrier(x: jax.Array, stored: jax.Array) -> jax.Array:
    """`x` itself, f32[...], as a product with 1 that XLA for CPUs does not see through; LLVM does, and leaves it out of each loop.

    A backward pass that transforms what the forward pass has transformed before would be merged
    with it, and the result kept in memory in between. XLA for CPUs drops `optimization_barrier`,
    which is meant for this, before it merges.

    Args:
        x: what is transformed.
        stored: f32[...], not empty: an array that is in memory in any case, whose first element is
            read.
    """
    bits = lax.bitcast_convert_type(stored.reshape(-1)[0], jnp.uint32)
    return x * ((bits | 1) & 1).astype(x.dtype)
