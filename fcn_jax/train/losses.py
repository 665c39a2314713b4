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
    float32 copy of the logits is stored. The label's logit is selected by comparison, whose gradient has no scatter.

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
        labels, logits = logits.scatter(labels, ignore_index), logits.channels_last
    wide = logits.astype(jnp.float32)
    largest = jax.lax.stop_gradient(wide.max(-1))
    normaliser = jnp.log(jnp.exp(wide - largest[..., None]).sum(-1)) + largest
    labels = labels.astype(jnp.int32)
    chosen = jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), wide, 0).sum(-1)
    counts = labels != ignore_index
    total = counts.sum() if count is None else count
    return jnp.where(counts, normaliser - chosen, 0).sum() / jnp.maximum(total, 1)


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
