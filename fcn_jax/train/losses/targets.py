"""Labels as the targets of a sigmoid for each class."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fcn_jax.plugins.api import IGNORE_INDEX


def binary_targets(labels: jax.Array, axis: int, task: str) -> tuple[jax.Array, jax.Array]:
    """Return whether each logit's target is 1, and whether it counts.

    Args:
        labels: i32[...], 0, 1 or `IGNORE_INDEX`: one per pixel for "binary", and one per pixel and
            class, in the shape of the logits, for "multilabel".
        axis: axis of the classes in the logits.
        task: "binary" or "multilabel".

    Returns:
        bool and bool, in the shape of the logits.
    """
    if task == "binary":
        labels = jnp.expand_dims(labels, axis)
    return labels == 1, labels != IGNORE_INDEX


def one_against_rest(
    logits: jax.Array, labels: jax.Array, axis: int, task: str
) -> tuple[jax.Array, jax.Array]:
    """Return `binary_targets` of any task; in "multiclass", each class is against all others."""
    if task != "multiclass":
        return binary_targets(labels, axis, task)
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis % logits.ndim)
    labels = jnp.expand_dims(labels, axis)
    return labels == classes, jnp.broadcast_to(labels != IGNORE_INDEX, logits.shape)
