"""Softmax cross entropy of logits and integer labels, without stored float32 copies."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Integer

from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.plugins.api import IGNORE_INDEX


def cross_entropy(
    logits: Float[Array, "*pixels K"] | SubpixelLogits,
    labels: Integer[Array, "*pixels"],
    ignore_index: int = IGNORE_INDEX,
    *,
    count: Integer[Array, ""] | None = None,
) -> Float32[Array, ""]:
    r"""Softmax cross entropy, averaged over the pixels whose label is not `ignore_index`.

    $$\text{loss} = \frac{1}{n} \sum_{p:\ y_p \ne \text{ignore}}
    \left(\log \sum_k e^{z_{pk}} - z_{p y_p}\right)$$

    It is `torch.nn.functional.cross_entropy(..., ignore_index=ignore_index)`, computed in float32
    from logits z of any float dtype. No float32 copy of the logits is stored, neither for the value
    nor for the gradient. The label's logit is selected by comparison, without gather and scatter.

    Args:
        logits: f[..., K], or sub-pixel logits of images.
        labels: integers [...], 0 to K-1 or `ignore_index`. A pixel with another value contributes
            its log-sum-exp alone; check labels where they are read.
        ignore_index: label of the pixels that are left out.
        count: i32[], the divisor n, for labels that are one part of a larger batch. By default the
            number of pixels that are not left out.

    Returns:
        f32[]; 0 if all pixels are left out (PyTorch returns NaN).
    """
    logits, labels, axis = unpacked(logits, labels, ignore_index)
    valid = labels != ignore_index
    total = valid.sum() if count is None else count
    losses = pixel_cross_entropy(logits, labels, valid, axis)
    return jnp.where(valid, losses, 0).sum() / jnp.maximum(total, 1).astype(jnp.float32)


def unpacked(
    logits: jax.Array | SubpixelLogits, labels: jax.Array, outside: int = IGNORE_INDEX
) -> tuple[jax.Array, jax.Array, int]:
    """Bring labels into the order of the logits.

    Args:
        logits: f[N, H, W, K], or sub-pixel logits of images.
        labels: integers [N, H, W].
        outside: label of the pixels of blocks that lie outside the images.

    Returns:
        The logits as one array f[N, ...]; their labels i32[N, ...], without the axis of the
        classes; and that axis.
    """
    if not isinstance(logits, SubpixelLogits):
        return logits, labels.astype(jnp.int32), -1
    # The barrier stores the rearranged labels. They are small, and XLA would otherwise compute
    # their positions again for each logit.
    labels = lax.optimization_barrier(logits.scatter(labels, outside))
    return _store_gradient(logits.values), labels.astype(jnp.int32), logits.CLASS_AXIS


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def pixel_cross_entropy(
    logits: jax.Array, labels: jax.Array, valid: jax.Array, axis: int
) -> jax.Array:
    """Cross entropy of each pixel, f32[...].

    Args:
        logits: f[...], with the classes along `axis`.
        labels: i32[...], without that axis.
        valid: bool[...]; the gradient is zero where it is false.
        axis: axis of the classes.
    """
    return _forward(logits, labels, valid, axis)[0]


def is_label(logits: jax.Array, labels: jax.Array, axis: int) -> jax.Array:
    """Return bool in the shape of the logits: true for the class that is the pixel's label."""
    classes = lax.broadcasted_iota(jnp.int32, logits.shape, axis % logits.ndim)
    return jnp.expand_dims(labels, axis) == classes


def _forward(
    logits: jax.Array, labels: jax.Array, valid: jax.Array, axis: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    three_passes = functools.partial(_in_three_passes, axis)
    largest, total, chosen = lax.platform_dependent(
        logits,
        labels,
        cpu=three_passes,
        tpu=three_passes,
        default=functools.partial(_in_one_pass, axis),
    )
    return jnp.log(total) + largest - chosen, (logits, labels, valid, largest, total)


def _in_three_passes(
    axis: int, logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return max_k z_k, sum_k exp(z_k - max) and z_label of each pixel, f32[...] each."""
    wide = logits.astype(jnp.float32)
    largest = wide.max(axis)
    total = jnp.exp(wide - jnp.expand_dims(largest, axis)).sum(axis)
    return largest, total, jnp.where(is_label(logits, labels, axis), wide, 0).sum(axis)


def _in_one_pass(
    axis: int, logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the same as `_in_three_passes` in one reduction, which reads the logits once.

    Source: Milakov, Gimelshein 2018, "Online normalizer calculation for softmax", arXiv:1805.02867.
    """
    wide = logits.astype(jnp.float32)

    def merge(one: tuple[jax.Array, ...], other: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        (max_1, total_1, chosen_1), (max_2, total_2, chosen_2) = one, other
        factor = jnp.exp(-jnp.abs(max_1 - max_2))  # the smaller maximum's sum shrinks by this
        first = max_1 >= max_2
        total = jnp.where(first, total_1, total_1 * factor) + jnp.where(
            first, total_2 * factor, total_2
        )
        return jnp.maximum(max_1, max_2), total, chosen_1 + chosen_2

    # The largest finite negative number, because -inf - (-inf) is NaN.
    start = np.finfo(np.float32).min, np.float32(0), np.float32(0)
    chosen = jnp.where(is_label(logits, labels, axis), wide, 0)
    return lax.reduce((wide, jnp.ones_like(wide), chosen), start, merge, (axis % logits.ndim,))


def _backward(
    axis: int, residuals: tuple[jax.Array, ...], grad: jax.Array
) -> tuple[jax.Array, None, None]:
    # The exponentials are computed again. The barrier keeps XLA from storing those of the forward
    # pass, which are float32 and as many as the logits.
    logits, labels, valid, largest, total = residuals
    largest, total, valid, grad = (
        jnp.expand_dims(x, axis) for x in (lax.optimization_barrier(largest), total, valid, grad)
    )
    softmax = jnp.exp(logits.astype(jnp.float32) - largest) / total
    change = softmax - is_label(logits, labels, axis).astype(jnp.float32)
    return jnp.where(valid, change * grad, 0).astype(logits.dtype), None, None


pixel_cross_entropy.defvjp(_forward, _backward)


@jax.custom_vjp
def _store_gradient(logits: jax.Array) -> jax.Array:
    """Identity whose gradient is stored, so that XLA does not recompute it at every use.

    TPUs are excepted.
    """
    return logits


def _stored(grad: jax.Array) -> jax.Array:
    return lax.platform_dependent(grad, tpu=lambda grad: grad, default=lax.optimization_barrier)


_store_gradient.defvjp(lambda logits: (logits, None), lambda _, grad: (_stored(grad),))
