"""Stochastic depth: residual branches that are left out at random in training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class StochasticDepth(nnx.Dropout):
    """Set the branch of a random share of the images to 0, and divide the others by the rest.

    Huang et al. 2016, arXiv:1603.09382; timm's `DropPath`, and `torchvision.ops.StochasticDepth` in
    the mode "row". It is the last layer of a branch, before the shortcut is added. In eval mode it
    returns its input.
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs) -> None:
        """Make the layer.

        Args:
            rate: probability with which an image's branch is set to 0, at least 0 and below 1.
            rngs: source of the random numbers, by the stream "dropout".
        """
        super().__init__(rate, rngs=rngs)

    def __call__(
        self,
        inputs: Float[Array, "N ..."],
        *,
        deterministic: bool | None = None,
        rngs: Any = None,
    ) -> Float[Array, "N ..."]:
        """f[N, ...] -> f[N, ...]; `deterministic` and `rngs` are as in `nnx.Dropout`."""
        if self.rate == 0 or (self.deterministic if deterministic is None else deterministic):
            return inputs
        kept = 1 - self.rate
        shape = (inputs.shape[0],) + (1,) * (inputs.ndim - 1)
        stream = self.rngs if rngs is None else getattr(rngs, self.rng_collection, rngs)
        key = stream() if callable(stream) else stream
        chosen = jax.random.bernoulli(key, kept, shape).astype(jnp.float32)
        # As in PyTorch, the factor is rounded to the dtype of the images before the product.
        return inputs * (chosen / kept).astype(inputs.dtype)
