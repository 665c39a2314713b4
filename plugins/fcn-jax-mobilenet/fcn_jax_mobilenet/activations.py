"""Piecewise linear activations with PyTorch's values and gradients, computed in float32 and returned in the dtype of their input.

Howard et al. 2019, arXiv:1905.02244, section 5.2. JAX's own give half the gradient where they bend, since `jnp.minimum` and `jnp.maximum`
share it between equal arguments; PyTorch gives none.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def relu6(x: jax.Array) -> jax.Array:
    """`torch.nn.ReLU6`: f[...] clipped to 0 and 6."""
    return jnp.where(x <= 0, 0, jnp.where(x >= 6, 6, x))


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """`torch.nn.Hardsigmoid`: relu6(x + 3) / 6, f[...] from 0 to 1."""
    return (relu6(x.astype(jnp.float32) + 3) / 6).astype(x.dtype)


def hard_swish(x: jax.Array) -> jax.Array:
    """`torch.nn.Hardswish`: x relu6(x + 3) / 6, f[...]."""
    wide = x.astype(jnp.float32)
    return (wide * relu6(wide + 3) / 6).astype(x.dtype)
