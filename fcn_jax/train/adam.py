"""Adam's direction with the exact bias correction."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam` (Kingma and Ba 2015, arXiv:1412.6980), with the same state.

    Optax computes the bias correction 1 - b2^t in float32, where it loses the digits that cancel:
    for b2 = 0.999 the first step is wrong by 6e-6, a hundred times the rounding of a product.
    PyTorch computes it in float64. Here it is -expm1(t log b2).

    Args:
        b1: decay of the average of the gradients, 0 or more and below 1.
        b2: decay of the average of their squares, 0 or more and below 1.
        eps: added to the root of the latter, above 0.
    """
    plain = optax.scale_by_adam(b1, b2, eps)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _, state = plain.update(grads, state, params)
        first, second = _correction(b1, state.count), _correction(b2, state.count)
        direction = jax.tree.map(
            lambda mean, square: (mean / first) / (jnp.sqrt(square / second) + eps),
            state.mu,
            state.nu,
        )
        return direction, state

    return optax.GradientTransformation(plain.init, update)


def _correction(decay: float, count: jax.Array) -> jax.Array:
    """1 - decay^count, f32[]."""
    if decay == 0:
        return jnp.ones(())
    return -jnp.expm1(count.astype(jnp.float32) * math.log(decay))
