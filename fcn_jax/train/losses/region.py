"""Losses of the overlap of regions: Dice, Jaccard and Tversky, over the whole batch."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.plugins.api import IGNORE_INDEX
from fcn_jax.train.losses.softmax import is_label
from fcn_jax.train.losses.targets import binary_targets

_SMALLEST = 1e-7
"""Smallest divisor of an overlap, and smallest overlap whose logarithm is taken, as in SMP."""


def tversky(
    logits: jax.Array,
    labels: jax.Array,
    axis: int = -1,
    *,
    task: str = "multiclass",
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    smooth: float = 0.0,
    log: bool = False,
    classes: Sequence[int] | None = None,
) -> jax.Array:
    r"""Tversky loss of a batch; Dice has alpha = beta = 1/2, and Jaccard has alpha = beta = 1.

    $$T_c = \frac{TP_c + s}{TP_c + \alpha FP_c + \beta FN_c + s}, \qquad
    \text{loss} = \Big(\frac{1}{K} \sum_{c:\ \text{present}} (1 - T_c)\Big)^\gamma$$

    TP, FP and FN are sums of probabilities over the pixels of the batch that are not ignored. As
    in segmentation_models_pytorch, a class without a pixel contributes 0, and the mean is over all
    classes, present or not.

    Source: Salehi et al. 2017, arXiv:1706.05721; Milletari et al. 2016, arXiv:1606.04797;
    segmentation_models_pytorch 0.5, losses/tversky.py.

    Args:
        logits: f[N, ...], with the classes along `axis`.
        labels: i32[N, ...] without that axis; for "multilabel", in the shape of the logits.
        axis: axis of the classes.
        task: "multiclass" (softmax), "binary" or "multilabel" (sigmoid).
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0.
        gamma: power of the mean, above 0.
        smooth: s, at least 0.
        log: take -log T_c instead of 1 - T_c.
        classes: labels of the classes in the mean; None for all.

    Returns:
        f32[]; 0 if all pixels are ignored.
    """
    if task == "multiclass":
        valid = jnp.expand_dims(labels != IGNORE_INDEX, axis)
        predicted = jnp.where(valid, jax.nn.softmax(logits.astype(jnp.float32), axis), 0)
        truth = is_label(logits, labels, axis)
    else:
        truth, valid = binary_targets(labels, axis, task)
        predicted = jnp.where(valid, jax.nn.sigmoid(logits.astype(jnp.float32)), 0)
    hits = _class_sums(jnp.where(truth, predicted, 0), axis)
    false_positives = _class_sums(predicted, axis) - hits
    pixels = _class_sums(truth.astype(jnp.float32), axis)
    denominator = hits + alpha * false_positives + beta * (pixels - hits) + smooth
    score = (hits + smooth) / jnp.maximum(denominator, _SMALLEST)
    loss = -jnp.log(jnp.maximum(score, _SMALLEST)) if log else 1 - score
    loss = jnp.where(pixels > 0, loss, 0)
    mean = (loss if classes is None else loss[np.asarray(classes)]).mean()
    if gamma == 1:
        return mean
    positive = mean > 0  # the power of 0 may have an infinite gradient
    return jnp.where(positive, jnp.where(positive, mean, 1) ** gamma, 0)


def _class_sums(x: jax.Array, axis: int) -> jax.Array:
    """Sum f32[N, ...] over all axes except `axis`, in two steps.

    A float32 sum over the hundreds of thousands of pixels of a batch, one after the other, would
    lose small terms. The barrier keeps XLA from merging the steps.
    """
    axis %= x.ndim
    inner = tuple(i for i in range(2, x.ndim) if i != axis)
    rows = lax.optimization_barrier(x.sum(inner, keepdims=True)) if inner else x
    return rows.sum(tuple(i for i in range(x.ndim) if i != axis))
