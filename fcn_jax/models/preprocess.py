"""From stored pixels to a network's input, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.plugins.api import Preprocess


def normalize(images: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Scale and normalize images for a backbone.

    Args:
        images: u8[..., 3], RGB, 0 to 255.
        preprocess: the backbone's `preprocess`.

    Returns:
        f32[..., 3], in the network's channel order.
    """
    if preprocess.channel_order == "bgr":
        images = images[..., ::-1]
    mean, std = np.asarray(preprocess.mean, np.float32), np.asarray(preprocess.std, np.float32)
    return (images.astype(jnp.float32) * np.float32(preprocess.scale / 255) - mean) / std
