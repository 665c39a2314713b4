"""From images to a network's input, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.plugins.api import Preprocess


def normalize(images: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Scale and normalize images for a backbone.

    Args:
        images: [..., C], u8 or f32; RGB of 0 to 255, or other channels.
        preprocess: the model's `preprocess`.

    Returns:
        f32[..., C], in the network's channel order.
    """
    if preprocess.channel_order == "bgr":
        # Of other channels than RGB, the first three, if there are so many.
        count = images.shape[-1]
        images = images[..., [2, 1, 0, *range(3, count)] if count >= 3 else slice(None)]
    mean, std = np.asarray(preprocess.mean, np.float32), np.asarray(preprocess.std, np.float32)
    return (images.astype(jnp.float32) * np.float32(preprocess.scale / 255) - mean) / std
