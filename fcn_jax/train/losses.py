"""Losses on logits and integer labels."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.plugins.api import IGNORE_INDEX


def cross_entropy(
    logits: jax.Array | SubpixelLogits,
    labels: jax.Array,
    ignore_index: int = IGNORE_INDEX,
    *,
    count: jax.Array | None = None,
) -> jax.Array:
    """Softmax cross entropy, averaged over the pixels that count; `torch.nn.functional.cross_entropy(ignore_index=...)`.

    -log softmax(logits)[label], computed in float32 from logits of any float dtype: the widening
    happens inside the reductions, and no float32 copy of the logits is stored, nor kept for the
    gradient. The label's logit is selected by comparison: no gather, no scatter.

    Args:
        logits: f[..., K], or images in blocks, whose labels are rearranged in their place.
        labels: integers [...], 0 to K-1 or `ignore_index`; other values count as pixels without a
            class of their own (loss of the normalizer alone), so check labels where they are read.
        ignore_index: label of pixels that do not count.
        count: i32[], what the sum over the pixels is divided by, where these are a part of a larger
            batch; by default their own number.

    Returns:
        f32[]; 0 where no pixel counts (PyTorch gives NaN there).
    """
    axis = logits.CLASS_AXIS if isinstance(logits, SubpixelLogits) else -1
    if isinstance(logits, SubpixelLogits):
        # Stored, for they are small: compilers would work out anew for each logit where its pixel's
        # label lies.
        labels = lax.optimization_barrier(logits.scatter(labels, ignore_index))
        logits = _store_gradient(logits.values)
    labels = labels.astype(jnp.int32)
    counts = labels != ignore_index
    total = counts.sum() if count is None else count
    return jnp.where(counts, _of_pixels(logits, labels, counts, axis), 0).sum() / jnp.maximum(
        total, 1
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _of_pixels(logits: jax.Array, labels: jax.Array, counts: jax.Array, axis: int) -> jax.Array:
    """f32[...], of each pixel, from logits whose classes lie along an axis; the gradient is zero where `counts` bool[...] is false."""
    return _forward(logits, labels, counts, axis)[0]


def _is_label(logits: jax.Array, labels: jax.Array, axis: int) -> jax.Array:
    """bool, in the shape of the logits: whether a pixel's label is this class."""
    return jnp.expand_dims(labels, axis) == lax.broadcasted_iota(
        jnp.int32, logits.shape, axis % logits.ndim
    )


def _forward(
    logits: jax.Array, labels: jax.Array, counts: jax.Array, axis: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    largest, total, chosen = lax.platform_dependent(
        logits,
        labels,
        cpu=functools.partial(_in_three_passes, axis),
        tpu=functools.partial(_in_three_passes, axis),
        default=functools.partial(_in_one_pass, axis),
    )
    return jnp.log(total) + largest - chosen, (logits, labels, counts, largest, total)


def _in_three_passes(
    axis: int, logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each pixel, in float32: the largest logit, the sum of the exponentials of what the others lack of it, and the label's logit."""
    wide = logits.astype(jnp.float32)
    largest = wide.max(axis)
    total = jnp.exp(wide - jnp.expand_dims(largest, axis)).sum(axis)
    return largest, total, jnp.where(_is_label(logits, labels, axis), wide, 0).sum(axis)


def _in_one_pass(
    axis: int, logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same in one reduction, which reads the logits once (Milakov, Gimelshein: Online normalizer calculation for softmax, 2018)."""
    wide = logits.astype(jnp.float32)

    def merge(one: tuple[jax.Array, ...], other: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        (largest, total, chosen), (largest_too, total_too, chosen_too) = one, other
        less = jnp.exp(-jnp.abs(largest - largest_too))
        first = largest >= largest_too
        total = jnp.where(first, total, total * less) + jnp.where(
            first, total_too * less, total_too
        )
        return jnp.maximum(largest, largest_too), total, chosen + chosen_too

    # Not from minus infinity, whose difference to a logit of minus infinity would be none.
    start = np.finfo(np.float32).min, np.float32(0), np.float32(0)
    chosen = jnp.where(_is_label(logits, labels, axis), wide, 0)
    return lax.reduce((wide, jnp.ones_like(wide), chosen), start, merge, (axis % logits.ndim,))


def _backward(
    axis: int, residuals: tuple[jax.Array, ...], grad: jax.Array
) -> tuple[jax.Array, None, None]:
    # The exponentials are computed again. The barrier hides that they are the same: XLA would keep
    # them, as many float32 as there are logits.
    logits, labels, counts, largest, total = residuals
    largest, total, counts, grad = (
        jnp.expand_dims(x, axis) for x in (lax.optimization_barrier(largest), total, counts, grad)
    )
    off = jnp.exp(logits.astype(jnp.float32) - largest) / total - _is_label(logits, labels, axis)
    return jnp.where(counts, off * grad, 0).astype(logits.dtype), None, None


_of_pixels.defvjp(_forward, _backward)


@jax.custom_vjp
def _store_gradient(logits: jax.Array) -> jax.Array:
    """The logits themselves. But for TPUs, their gradient is stored, which would be computed in each of the places that use it."""
    return logits


def _stored(grad: jax.Array) -> jax.Array:
    return lax.platform_dependent(grad, tpu=lambda grad: grad, default=lax.optimization_barrier)


_store_gradient.defvjp(lambda logits: (logits, None), lambda _, grad: (_stored(grad),))


def segmentation_loss(
    outputs: Mapping[str, jax.Array | SubpixelLogits],
    labels: jax.Array,
    aux_weight: float,
    *,
    count: jax.Array | None = None,
) -> jax.Array:
    """Cross entropy of a model's logits and, at `aux_weight`, of its auxiliary head's, as torchvision's reference training adds them.

    Args:
        outputs: "out" and perhaps "aux", f[N, H, W, K] or in blocks; `Segmenter.outputs`.
        labels: integers [N, H, W].
        aux_weight: at least 0.
        count: as for `cross_entropy`.
    """
    loss = cross_entropy(outputs["out"], labels, count=count)
    return (
        loss + aux_weight * cross_entropy(outputs["aux"], labels, count=count)
        if "aux" in outputs
        else loss
    )
