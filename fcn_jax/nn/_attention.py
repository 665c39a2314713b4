"""Attention, and rotary position embeddings."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def attention(
    q: Float[Array, "*B T D"],
    k: Float[Array, "*B S D"],
    v: Float[Array, "*B S E"],
    bias: Float[Array, "*A"] | None = None,
) -> Float[Array, "*B T E"]:
    """`softmax(q k^T / sqrt(D) + bias) v`; `torch.nn.functional.scaled_dot_product_attention`.

    Vaswani et al. 2017, arXiv:1706.03762. Products and softmax are computed in float32, and the
    probabilities are rounded to the dtype of `v`.

    Args:
        q: queries f[..., T, D], such as f[N, heads, T, D].
        k: keys f[..., S, D].
        v: values f[..., S, E].
        bias: added to the scores; its shape broadcasts to [..., T, S]. None for none.

    Returns:
        f[..., T, E] in the dtype of `v`.
    """
    scores = jnp.einsum("...td,...sd->...ts", q, k, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    probabilities = jax.nn.softmax(scores, -1).astype(v.dtype)
    out = jnp.einsum("...ts,...se->...te", probabilities, v, preferred_element_type=jnp.float32)
    return out.astype(v.dtype)


def rotary_angles(
    size: tuple[int, int], head_channels: int, *, base: float = 100.0
) -> Float[np.ndarray, "T D"]:
    """The angles of DINOv3's rotary position embedding, for `rotate`.

    The centers of the patches are -1 to 1 along each side of the image. Siméoni et al. 2025,
    arXiv:2508.10104; `RotaryEmbeddingDinoV3` of timm, which computes its periods in float32.

    Args:
        size: patches along height and width, at least 1.
        head_channels: channels D of a head, a multiple of 4.
        base: longest period, in halves of the image's side.

    Returns:
        Angles f32[height * width, D] in radians; both halves of the channels are equal.

    Raises:
        ValueError: `head_channels` is not a multiple of 4.
    """
    if head_channels % 4:
        raise ValueError(f"head_channels is {head_channels}; it must be a multiple of 4")
    periods = base ** (2 * np.arange(head_channels // 4) / (head_channels // 2))
    sides = [2 * (np.arange(side) + 0.5) / side - 1 for side in size]
    centers = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2, 1)
    angles = (2 * math.pi * centers / periods).reshape(len(centers), -1)
    return np.tile(angles, 2).astype(np.float32)


def rotate(
    x: Float[Array, "*B T D"], angles: Float[Array, "T D"] | np.ndarray
) -> Float[Array, "*B T D"]:
    """Rotate each pair of channels (i, i + D / 2) of a token by an angle, in float32.

    Su et al. 2021, arXiv:2104.09864; `apply_rot_embed_cat(half=True)` of timm.

    Args:
        x: queries or keys f[..., T, D], D even.
        angles: f32[T, D], whose halves along the channels are equal.

    Returns:
        f[..., T, D] in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    first, second = jnp.split(wide, 2, -1)
    turned = jnp.concatenate([-second, first], -1)
    return (wide * jnp.cos(angles) + turned * jnp.sin(angles)).astype(x.dtype)
