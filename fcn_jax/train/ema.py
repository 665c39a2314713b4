"""Exponential moving averages of the weights (EMA), as in PyTorch's `AveragedModel` and timm.

The average is kept of parameters and of the running statistics of normalizations, as by timm's
`ModelEmaV3` and by `AveragedModel(use_buffers=True)`. Without the statistics, averaged parameters
would be normalized by those of other parameters. Counts and `nn.Buffer` values are not averaged:
they are those of the newest step.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.nn import Buffer


def averaged(params: nnx.State, batch_stats: nnx.State) -> nnx.State:
    """Return the part of a model's state of which an average is kept, as one state."""

    def is_float(path: Any, leaf: Any) -> bool:
        return not isinstance(leaf, Buffer) and jnp.issubdtype(leaf.dtype, jnp.floating)

    return nnx.merge_state(params, nnx.filter_state(batch_stats, is_float))


def new_weight(step: jax.Array, decay: float, *, warmup: bool = False) -> jax.Array:
    """Weight of the newest values in the average.

    It is `1 - decay`, and 1 for the first values, which replace the initial ones. With `warmup` it
    is `1 - min(decay, (1 + t) / (10 + t))` after t earlier steps, as in TensorFlow's
    `ExponentialMovingAverage` and in torch_ema, so that an average over few steps forgets faster.

    Args:
        step: i32[], number t of values that were averaged before.
        decay: above 0 and below 1.
        warmup: see above.

    Returns:
        f32[].
    """
    weight = jnp.float32(1 - decay)
    if warmup:
        weight = jnp.maximum(weight, 9 / (10 + step.astype(jnp.float32)))
    return jnp.where(step == 0, 1, weight)


def updated(average: nnx.State, values: nnx.State, weight: jax.Array) -> nnx.State:
    """Return `average + weight * (values - average)`, in the form that is exact for weight 1.

    This is `torch.lerp`, which `AveragedModel` and timm use.
    """

    def lerp(old: jax.Array, new: jax.Array) -> jax.Array:
        difference = new - old
        return jnp.where(weight < 0.5, old + weight * difference, new - (1 - weight) * difference)

    return jax.tree.map(lerp, average, values)
