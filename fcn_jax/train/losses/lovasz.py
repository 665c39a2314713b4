"""The Lovász extension of the Jaccard loss, by counting instead of sorting."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fcn_jax.plugins.api import IGNORE_INDEX
from fcn_jax.train.losses.softmax import is_label
from fcn_jax.train.losses.targets import binary_targets

_BINS = 2**19
"""Bins of all problems together; 16,384 for each of 21 classes."""


def lovasz(
    logits: jax.Array,
    labels: jax.Array,
    axis: int = -1,
    *,
    task: str = "multiclass",
    per_image: bool = False,
    present: bool = True,
) -> jax.Array:
    r"""Lovász-softmax loss, or Lovász hinge for "binary" and "multilabel".

    With the errors e of a class's pixels in descending order, and J_i the Jaccard loss if the first
    i pixels are wrong,

    $$\text{loss} = \sum_i e_i (J_i - J_{i-1}).$$

    An error is the distance of the probability from 0 or 1, or 1 - z and 1 + z (at least 0) for the
    hinge, where all classes are one problem, as in segmentation_models_pytorch.

    The order is found by counting the errors in bins, which takes a tenth of the time of sorting
    and exchanges only counts between devices. Errors in one bin count as if their order were
    random, so that they share their differences of J. The value is exact if no two different errors
    of a class are in one bin, and otherwise smaller by less than a bin's width, which is 1/16384
    for the 21 classes of a batch, and between 1/4096 and 1/262144.

    Source: Berman et al. 2018, arXiv:1705.08790, Algorithm 1; segmentation_models_pytorch 0.5,
    losses/lovasz.py.

    Args:
        logits: f[N, ...], with the classes along `axis`.
        labels: i32[N, ...] without that axis; for "multilabel", in the shape of the logits.
        axis: axis of the classes.
        task: "multiclass" (softmax), "binary" or "multilabel" (hinge).
        per_image: the loss of each image alone, instead of all together.
        present: the mean over the classes that occur in the labels, instead of all classes; only
            for "multiclass". A class without pixels has its largest error as its loss.

    Returns:
        f32[N] if `per_image`, else f32[1]; 0 where all pixels are ignored.
    """
    # Errors f32[Q, ...] of Q problems, of one class or image each; those of ignored pixels are -1.
    if task == "multiclass":
        wide = jnp.moveaxis(logits.astype(jnp.float32), axis, 0)
        truth, predicted = is_label(wide, labels, 0), jax.nn.softmax(wide, 0)
        errors = jnp.where(labels != IGNORE_INDEX, jnp.where(truth, 1 - predicted, predicted), -1)
        if per_image:
            truth, errors = (x.reshape(-1, *x.shape[2:]) for x in (truth, errors))
        key = errors
    else:
        truth, valid = binary_targets(labels, axis, task)
        signed = jnp.where(truth, 1, -1) * logits.astype(jnp.float32)
        errors = jnp.where(valid, jax.nn.relu(1 - signed), -1)
        if not per_image:
            truth, errors = truth[None], errors[None]
        key = jnp.where(errors < 0, -1, errors / (1 + jnp.abs(errors)))  # the same order, below 1
    problems = len(errors)
    images = labels.shape[0] if per_image else 1
    pixels = tuple(range(1, errors.ndim))
    counts = jnp.ones(problems, bool)
    if task == "multiclass" and present:
        counts = truth.any(pixels)
    bins = 2 ** min(max(int(math.log2(_BINS / problems)), 12), 18)
    steps = functools.partial(_steps_of_pixels, bins=bins)
    slopes = lax.platform_dependent(
        lax.stop_gradient(key),
        truth,
        counts,
        cpu=functools.partial(_one_by_one, steps),
        default=lambda key, truth, _: jax.vmap(steps)(key, truth),
    )
    products = jnp.where(errors < 0, 0, errors * slopes)
    # In two steps, as in `region`.
    rows = lax.optimization_barrier(products.sum(-1))
    losses = rows.sum(tuple(range(1, rows.ndim))).reshape(-1, images)
    shares = counts.astype(jnp.float32).reshape(-1, images)
    return (losses * shares).sum(0) / jnp.maximum(shares.sum(0), 1)


def _one_by_one(
    steps: Callable[..., jax.Array], key: jax.Array, truth: jax.Array, counts: jax.Array
) -> jax.Array:
    """`steps` of each problem, one after the other, or zeros for those that do not count.

    The bins of one problem fit into a CPU's cache.
    """

    def one(problem: tuple[jax.Array, ...]) -> jax.Array:
        key, truth, counts = problem
        return lax.cond(counts, steps, lambda key, _: jnp.zeros_like(key), key, truth)

    return lax.map(one, (key, truth, counts))


def _steps_of_pixels(key: jax.Array, truth: jax.Array, *, bins: int) -> jax.Array:
    """By how much the Jaccard loss of one problem rises by each pixel, f32[...].

    Args:
        key: f32[...], 0 to 1 in the order of the errors; below 0 for ignored pixels.
        truth: bool[...], whether a pixel is foreground.
        bins: number of bins.
    """
    # Bin 0 has the largest errors; ignored pixels have an index beyond the counters.
    place = bins - 1 - jnp.minimum((key * bins).astype(jnp.int32), bins - 1)
    place = jnp.where(key < 0, 2 * bins, place + bins * truth)
    counts = jnp.zeros(2 * bins, jnp.int32).at[place.ravel()].add(1, mode="drop")
    steps = _jaccard_steps(counts.reshape(2, bins).astype(jnp.float32))
    return steps.ravel().at[place].get(mode="clip")


def _jaccard_steps(counts: jax.Array) -> jax.Array:
    """By how much the Jaccard loss rises by one pixel of each bin, on average.

    Args:
        counts: f32[2, bins], background and foreground pixels in each bin, the largest errors
            first.

    Returns:
        f32[2, bins].
    """
    after = jnp.cumsum(counts, -1)
    (here, hits), (negatives, positives) = counts, after - counts
    foreground = after[1, -1]
    # The union before the bin, and after it. For one pixel alone, these are the exact differences
    # of J; for several, the mean of "all background first" and "all foreground first".
    union = jnp.maximum(foreground + negatives, 1)
    union_after = jnp.maximum(foreground + negatives + here, 1)
    positive_step = (1 / union + 1 / union_after) / 2
    negative_step = (foreground - positives - hits / 2) / (union * union_after)
    # Without foreground, J rises to 1 with the first pixel.
    first = jnp.where(negatives == 0, 1 / jnp.maximum(here, 1), 0)
    negative_step = jnp.where(foreground > 0, negative_step, first)
    return jnp.stack([negative_step, positive_step])
