"""Addition of a bias, with an exact gradient in bfloat16."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def add_bias(x: jax.Array, bias: jax.Array, axis: int = -1) -> jax.Array:
    """Add `bias` f32[C], rounded to the dtype of `x`, to `x` f[..., C, ...] along an axis.

    The gradient of the bias is summed in float32. The gradient of a plain sum would be summed in
    the dtype of `x`, which fails in bfloat16 over the pixels of a batch: 256 + 1 is 256 there.
    """
    others = [i for i in range(x.ndim) if i != axis % x.ndim]
    return x + jnp.expand_dims(bias.astype(x.dtype), others)


def _forward(x: jax.Array, bias: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    return add_bias(x, bias, axis), bias


def _backward(axis: int, bias: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    others = [i for i in range(grad.ndim) if i != axis % grad.ndim]
    return grad, grad.astype(jnp.float32).sum(others).astype(bias.dtype)


add_bias.defvjp(_forward, _backward)
