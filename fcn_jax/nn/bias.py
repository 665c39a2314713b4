"""Adding a bias, with a gradient that is exact enough in bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x` f[..., C] plus `bias` f32[C] rounded to the dtype of `x`; the bias's gradient is summed in float32.

    The plain sum's gradient would be a sum in the dtype of `x`. Over the pixels of a batch, bfloat16 loses it: 256 + 1 is 256 there.
    """
    return x + bias.astype(x.dtype)


def _forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return add_bias(x, bias), bias


def _backward(bias: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    return grad, grad.astype(jnp.float32).sum(range(grad.ndim - 1)).astype(bias.dtype)


add_bias.defvjp(_forward, _backward)
