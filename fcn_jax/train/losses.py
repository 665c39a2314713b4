"""Losses on logits and integer labels."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fcn_jax.api import IGNORE_INDEX
from fcn_jax.nn.blocks import Blocks


def cross_entropy(
    logits: jax.Array | Blocks, labels: jax.Array, ignore_index: int = IGNORE_INDEX, *, count: jax.Array | None = None
) -> jax.Array:
    """Softmax cross entropy, averaged over the pixels that count; `torch.nn.functional.cross_entropy(ignore_index=...)`.

    -log softmax(logits)[label], computed in float32 from logits of any float dtype: the widening happens inside the reductions, and no
    float32 copy of the logits is stored, nor kept for the gradient. The label's logit is selected by comparison: no gather, no scatter.

    Args:
        logits: f[..., K], or images in blocks, whose labels are rearranged in their place.
        labels: integers [...], 0 to K-1 or `ignore_index`; other values count as pixels without a class of their own (loss of the
            normaliser alone), so check labels where they are read.
        ignore_index: label of pixels that do not count.
        count: i32[], what the sum over the pixels is divided by, where these are a part of a larger batch; by default their own number.

    Returns:
        f32[]; 0 where no pixel counts (PyTorch gives NaN there).
    """
    if isinstance(logits, Blocks):
        labels, logits = logits.scatter(labels, ignore_index), _gradient_once(logits.channels_last)
    labels = labels.astype(jnp.int32)
    counts = labels != ignore_index
    total = counts.sum() if count is None else count
    return jnp.where(counts, _of_pixels(logits, labels, counts), 0).sum() / jnp.maximum(total, 1)


@jax.custom_vjp
def _of_pixels(logits: jax.Array, labels: jax.Array, counts: jax.Array) -> jax.Array:
    """f32[...], of each pixel; the gradient is zero where `counts` bool[...] is false."""
    return _forward(logits, labels, counts)[0]


def _forward(logits: jax.Array, labels: jax.Array, counts: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    wide = logits.astype(jnp.float32)
    largest = wide.max(-1)
    total = jnp.exp(wide - largest[..., None]).sum(-1)
    chosen = jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), wide, 0).sum(-1)
    return jnp.log(total) + largest - chosen, (logits, labels, counts, largest, total)


def _backward(residuals: tuple[jax.Array, ...], grad: jax.Array) -> tuple[jax.Array, None, None]:
    # The exponentials are computed again. The barrier hides that they are the same: XLA would keep them, as many float32 as there are
    # logits.
    logits, labels, counts, largest, total = residuals
    largest = jax.lax.optimization_barrier(largest)
    shares = jnp.exp(logits.astype(jnp.float32) - largest[..., None]) / total[..., None]
    off = shares - (labels[..., None] == jnp.arange(logits.shape[-1]))
    return jnp.where(counts[..., None], off * grad[..., None], 0).astype(logits.dtype), None, None


_of_pixels.defvjp(_forward, _backward)


@jax.custom_vjp
def _gradient_once(logits: jax.Array) -> jax.Array:
    """The logits themselves. Their gradient is stored: TPUs' compiler would compute it in each of the three places that use it."""
    return logits


_gradient_once.defvjp(lambda logits: (logits, None), lambda _, grad: (jax.lax.optimization_barrier(grad),))


def segmentation_loss(
    outputs: Mapping[str, jax.Array | Blocks], labels: jax.Array, aux_weight: float, *, count: jax.Array | None = None
) -> jax.Array:
    """Cross entropy of a model's logits and, at `aux_weight`, of its auxiliary head's, as torchvision's reference training adds them.

    Args:
        outputs: "out" and perhaps "aux", f[N, H, W, K] or in blocks; `Segmenter.outputs`.
        labels: integers [N, H, W].
        aux_weight: at least 0.
        count: as for `cross_entropy`.
    """
    loss = cross_entropy(outputs["out"], labels, count=count)
    return loss + aux_weight * cross_entropy(outputs["aux"], labels, count=count) if "aux" in outputs else loss
