"""TensorFlow's "SAME" padding, which depends on the image's size."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def same_padding(
    size: int, kernel_size: int, stride: int = 1, dilation: int = 1
) -> tuple[int, int]:
    """Zeros before and after one side of an image, such that n pixels become ceil(n / stride).

    They are as few as possible. If their number is odd, there is one more after the side: a 3x3
    convolution with stride 2 pads an even side by 0 and 1, and an odd one by 1 and 1. PyTorch pads
    both sides alike, whatever the size, which shifts the result by a pixel.

    Source: tensorflow.org/api_docs/python/tf/nn, "Notes on padding"; `pad_same` of timm.

    Args:
        size: pixels of the side, at least 1.
        kernel_size: at least 1.
        stride: at least 1.
        dilation: distance between the taps of the kernel, at least 1.
    """
    covered = (-(-size // stride) - 1) * stride + dilation * (kernel_size - 1) + 1
    total = max(covered - size, 0)
    return total // 2, total - total // 2


def pad_same(
    x: Float[Array, "N H W C"],
    kernel_size: tuple[int, int],
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "N h w C"]:
    """Pad images f[N, H, W, C] by `same_padding`, for a convolution without padding of its own."""
    edges = [
        same_padding(size, taps, stride, dilation)
        for size, taps in zip(x.shape[1:3], kernel_size, strict=True)
    ]
    return jnp.pad(x, [(0, 0), *edges, (0, 0)])
