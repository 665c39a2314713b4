"""Losses of single pixels: weighted and smoothed cross entropy, hard pixels, focal loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.plugins.api import IGNORE_INDEX
from fcn_jax.train.losses.softmax import is_label, pixel_cross_entropy
from fcn_jax.train.losses.targets import one_against_rest

_TINY = 1e-12
"""Stands for 0 where a power of 0 would have an infinite gradient."""


def pixel_losses(logits: jax.Array, labels: jax.Array, axis: int, task: str) -> jax.Array:
    """Cross entropy of each pixel, f32[...]; the gradient of ignored pixels is zero.

    Args:
        logits: f[...], with the K classes along `axis`, or one for "binary", whose probability of
            class 1 is its sigmoid.
        labels: i32[...] without that axis.
        axis: axis of the classes.
        task: "multiclass" or "binary".
    """
    valid = labels != IGNORE_INDEX
    if task == "multiclass":
        return pixel_cross_entropy(logits, labels, valid, axis)
    logit = logits.astype(jnp.float32).squeeze(axis)
    return jnp.where(valid, jax.nn.softplus(jnp.where(labels == 1, -logit, logit)), 0)


def count_valid(labels: jax.Array) -> jax.Array:
    """Number of labels that are not ignored, i32[]."""
    return (labels != IGNORE_INDEX).sum()


def cross_entropy_sum(
    logits: jax.Array,
    labels: jax.Array,
    axis: int = -1,
    *,
    task: str = "multiclass",
    weights: Sequence[float] | None = None,
    smoothing: float = 0.0,
) -> jax.Array:
    r"""Sum over pixels of the cross entropy with class weights and label smoothing.

    $$\sum_{p} (1 - \epsilon)\, w_{y_p} (-\log q_{p y_p})
    + \frac{\epsilon}{K} \sum_k w_k (-\log q_{pk})$$

    Divided by `weight_sum`, it is `torch.nn.functional.cross_entropy` with its `weight`,
    `label_smoothing` and `ignore_index`.

    Args:
        logits: f[...], with the classes along `axis`.
        labels: i32[...] without that axis.
        axis: axis of the classes.
        task: "multiclass", or "binary", where the two classes have the logits 0 and z.
        weights: w, K numbers of at least 0; None for ones.
        smoothing: epsilon, 0 to 1.

    Returns:
        f32[].
    """
    losses, valid = pixel_losses(logits, labels, axis, task), labels != IGNORE_INDEX
    if weights is not None:
        losses = losses * _at_label(weights, labels)
    if smoothing:
        uniform = _uniform_losses(logits, labels, axis, task, weights)
        losses = (1 - smoothing) * losses + smoothing * uniform
    return jnp.where(valid, losses, 0).sum()


def _at_label(weights: Sequence[float], labels: jax.Array) -> jax.Array:
    """The weight of each pixel's label, f32[...]; any value for ignored pixels."""
    table = jnp.asarray(weights, jnp.float32)
    return table[jnp.minimum(labels, len(weights) - 1)]


def _uniform_losses(
    logits: jax.Array, labels: jax.Array, axis: int, task: str, weights: Sequence[float] | None
) -> jax.Array:
    """(1/K) sum_k w_k (-log q_k) of each pixel."""
    wide = logits.astype(jnp.float32)
    if task == "binary":
        first, second = (1.0, 1.0) if weights is None else weights
        logit = wide.squeeze(axis)
        return (first * jax.nn.softplus(logit) + second * jax.nn.softplus(-logit)) / 2
    count = logits.shape[axis]
    each = np.ones(count) if weights is None else np.asarray(weights)
    share = _along(each / each.sum(), axis, logits.ndim)
    # The log-sum-exp minus the weighted mean of the logits, from the cross entropy of the label.
    plain = pixel_cross_entropy(logits, labels, labels != IGNORE_INDEX, axis)
    difference = ((is_label(logits, labels, axis).astype(jnp.float32) - share) * wide).sum(axis)
    return float(each.sum() / count) * (plain + difference)


def _along(values: np.ndarray | Sequence[float], axis: int, ndim: int) -> jax.Array:
    """f32 values of the classes, in a shape that broadcasts against logits."""
    shape = [1] * ndim
    shape[axis] = -1
    return jnp.asarray(values, jnp.float32).reshape(shape)


def weight_sum(labels: jax.Array, weights: Sequence[float] | None = None) -> jax.Array:
    """Sum over pixels of the weight of their label, or their number, without ignored pixels."""
    if weights is None:
        return count_valid(labels)
    return jnp.where(labels != IGNORE_INDEX, _at_label(weights, labels.astype(jnp.int32)), 0).sum()


def ohem(
    logits: jax.Array,
    labels: jax.Array,
    axis: int = -1,
    *,
    task: str = "multiclass",
    threshold: float = 0.7,
    min_kept: int = 100_000,
    fraction: float | None = None,
) -> jax.Array:
    """Mean cross entropy of the hard pixels of a batch (online hard example mining).

    A pixel is kept if the probability of its label is below `threshold`, or if it is among the
    `min_kept` pixels per image of the batch with the largest losses; of fewer pixels, all are kept.
    With `fraction`, that fraction of the pixels with the largest losses is kept instead, at least
    one; pixels of equal loss at the border share the remaining places.

    Source: HRNet, lib/core/criterion.py (`OhemCrossEntropy`); mmsegmentation,
    core/seg/sampler/ohem_pixel_sampler.py, whose `min_kept` is also per image; detectron2,
    `DeepLabCE` (top_k_percent_pixels). The first two drop the easiest pixel if there are no more
    than `min_kept`.

    Args:
        logits: f[N, ...], with the classes along `axis`.
        labels: i32[N, ...] without that axis.
        axis: axis of the classes.
        task: "multiclass" or "binary".
        threshold: probability, above 0 and at most 1.
        min_kept: pixels per image, at least 0.
        fraction: above 0 and at most 1; None for the threshold.

    Returns:
        f32[]; 0 if all pixels are ignored.
    """
    valid = labels != IGNORE_INDEX
    losses = pixel_losses(logits, labels, axis, task)
    order = lax.stop_gradient(jnp.where(valid, jnp.maximum(losses, 0), -1))
    if fraction is None:
        kept = min_kept * labels.shape[0]
        limit = jnp.float32(-math.log(threshold))
        limit = jnp.minimum(limit, _kth_largest(order, kept + 1) if kept < order.size else -1)
        weights = (order > limit).astype(jnp.float32)
    else:
        number = jnp.maximum(jnp.floor(fraction * valid.sum()).astype(jnp.int32), 1)
        limit = _kth_largest(order, number)
        above, equal = order > limit, order == limit
        remaining = (number - above.sum()).astype(jnp.float32)
        weights = jnp.where(equal, remaining / jnp.maximum(equal.sum(), 1), above)
    weights = jnp.where(valid, weights, 0)
    return (weights * losses).sum() / jnp.maximum(weights.sum(), 1)


def _kth_largest(values: jax.Array, number: jax.Array | int) -> jax.Array:
    """The `number`-th largest of f32 values that are at least 0 or -1; -1 if there are too few.

    By bisection of the bits, whose order is that of the values: 32 sums, which need no exchange of
    pixels between devices, instead of a sort. The values of -1 do not count.
    """
    bits = lax.bitcast_convert_type(values + 0.0, jnp.int32)  # + 0.0 because -0.0 sorts below

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low + 1) // 2
        enough = (bits >= middle).sum() >= number
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    bounds = jnp.int32(-1), jnp.int32(np.float32(np.inf).view(np.int32))
    found, _ = lax.fori_loop(0, 32, halve, bounds)
    return jnp.where(found < 0, -1.0, lax.bitcast_convert_type(found, jnp.float32))


def focal_sum(
    logits: jax.Array,
    labels: jax.Array,
    axis: int = -1,
    *,
    task: str = "multiclass",
    gamma: float = 2.0,
    weights: Sequence[float] | None = None,
) -> jax.Array:
    """Sum over pixels of a_y (1 - q_y)^gamma (-log q_y), with q_y the probability of the label.

    Source: Lin et al. 2017, arXiv:1708.02002; segmentation_models_pytorch 0.5,
    `softmax_focal_loss_with_logits`, and `FocalLoss` for "binary".

    Args:
        logits: f[...], with the classes along `axis`.
        labels: i32[...] without that axis.
        axis: axis of the classes.
        task: "multiclass" or "binary".
        gamma: at least 0; 0 gives the cross entropy.
        weights: a, one number of at least 0 for each class; None for ones.

    Returns:
        f32[].
    """
    losses = pixel_losses(logits, labels, axis, task)
    losses = jnp.maximum(-jnp.expm1(-losses), _TINY) ** gamma * losses
    if weights is not None:
        losses = losses * _at_label(weights, labels)
    return jnp.where(labels != IGNORE_INDEX, losses, 0).sum()


def sigmoid_focal_sum(
    logits: jax.Array,
    labels: jax.Array,
    axis: int = -1,
    *,
    task: str = "multilabel",
    gamma: float = 2.0,
    alpha: float | None = None,
) -> jax.Array:
    """Sum over pixels and classes of the focal loss of each class against the rest, by sigmoid.

    Source: segmentation_models_pytorch 0.5, `FocalLoss`.

    Args:
        logits: f[...], with the classes along `axis`.
        labels: i32[...] without that axis; for "multilabel", in the shape of the logits.
        axis: axis of the classes.
        task: "multiclass", "binary" or "multilabel".
        gamma: at least 0.
        alpha: weight of targets that are 1, and 1 - alpha of those that are 0, from 0 to 1; None
            for no weights.

    Returns:
        f32[].
    """

    @jax.checkpoint  # keeps no float32 copies of the logits
    def summed(logits: jax.Array) -> jax.Array:
        truth, valid = one_against_rest(logits, labels, axis, task)
        wide = logits.astype(jnp.float32)
        against = jnp.where(truth, -wide, wide)
        miss = jnp.maximum(jax.nn.sigmoid(against), _TINY)
        losses = miss**gamma * jax.nn.softplus(against)
        if alpha is not None:
            losses = losses * jnp.where(truth, alpha, 1 - alpha)
        return jnp.where(valid, losses, 0).sum()

    return summed(logits)


def binary_cross_entropy_sum(
    logits: jax.Array,
    labels: jax.Array,
    axis: int = -1,
    *,
    task: str = "binary",
    pos_weight: float | Sequence[float] = 1.0,
    smooth_factor: float = 0.0,
) -> jax.Array:
    """Sum over pixels and classes of -(w t log s + (1 - t) log(1 - s)), with s the sigmoid.

    Source: `torch.nn.BCEWithLogitsLoss`; segmentation_models_pytorch 0.5,
    `SoftBCEWithLogitsLoss`.

    Args:
        logits: f[...], with the classes along `axis`.
        labels: i32[...] without that axis; for "multilabel", in the shape of the logits.
        axis: axis of the classes.
        task: "binary" or "multilabel".
        pos_weight: w, above 0; one number, or one for each class.
        smooth_factor: f, 0 to 1: the target t is 1 - f for labels of 1, and f for labels of 0.

    Returns:
        f32[].
    """
    weight: jax.Array | float = (
        pos_weight if isinstance(pos_weight, int | float) else _along(pos_weight, axis, logits.ndim)
    )

    @jax.checkpoint  # keeps no float32 copies of the logits
    def summed(logits: jax.Array) -> jax.Array:
        truth, valid = one_against_rest(logits, labels, axis, task)
        wide = logits.astype(jnp.float32)
        target = jnp.where(truth, 1 - smooth_factor, smooth_factor)
        losses = weight * target * jax.nn.softplus(-wide) + (1 - target) * jax.nn.softplus(wide)
        return jnp.where(valid, losses, 0).sum()

    return summed(logits)
