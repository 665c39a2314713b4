"""Activations that differ from `jax.nn` in precision or default."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gelu(x: Float[Array, "*S"], approximate: str = "none") -> Float[Array, "*S"]:
    """Gaussian error linear unit, computed in float32; `torch.nn.functional.gelu`.

    Hendrycks and Gimpel 2016, arXiv:1606.08415. `jax.nn.gelu` has "tanh" as its default.

    Args:
        x: f[...].
        approximate: "none", the exact form with the error function, or "tanh".

    Returns:
        f[...] in the dtype of `x`.

    Raises:
        ValueError: another value of `approximate`.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is '{approximate}'; it must be 'none' or 'tanh'")
    y = jax.nn.gelu(x.astype(jnp.float32), approximate=approximate == "tanh")
    return y.astype(x.dtype)


def silu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Sigmoid linear unit, x sigmoid(x), in float32; `torch.nn.functional.silu`, also called swish.

    Ramachandran et al. 2017, arXiv:1710.05941. `jax.nn.silu` rounds the sigmoid in bfloat16, too.

    Args:
        x: f[...].

    Returns:
        f[...] in the dtype of `x`.
    """
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)
