"""Logits in blocks of pixels, the layout of the product in a transposed convolution.

GPUs and TPUs compute loss and argmax in this layout. A pixel shuffle would copy the largest array
of the network, forward and backward; it is cheaper to rearrange the labels.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SubpixelLogits:
    """Logits of images in blocks of s x s pixels: block (r, c) starts at (s r - top, s c - left).

    Attributes:
        values: f[N, R, C, K, s, s]. The classes are at `CLASS_AXIS`, before the pixels, so that
            neighbors in memory are pixels.
        top: number of rows of the first blocks that lie outside the images.
        left: number of such columns.
        height: of the images, at most s R - top.
        width: of the images, at most s C - left.
    """

    CLASS_AXIS: ClassVar[int] = 3

    values: jax.Array
    top: int = dataclasses.field(metadata={"static": True})
    left: int = dataclasses.field(metadata={"static": True})
    height: int = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})

    def crop(self, height: int, width: int, *, top: int = 0, left: int = 0) -> SubpixelLogits:
        """Crop the images to at most `height` x `width` pixels from (`top`, `left`)."""
        height, width = min(height, self.height - top), min(width, self.width - left)
        return dataclasses.replace(
            self, top=self.top + top, left=self.left + left, height=height, width=width
        )

    @property
    def images(self) -> jax.Array:
        """The logits f[N, height, width, K], by the copy that this layout avoids."""
        return self.gather(jnp.moveaxis(self.values, self.CLASS_AXIS, -1))

    def scatter(self, images: jax.Array, outside: int) -> jax.Array:
        """Images [N, height, width] -> blocks [N, R, C, s, s], padded with `outside`."""
        _, rows, cols, _, side, _ = self.values.shape
        edges = (
            (0, 0),
            (self.top, rows * side - self.top - self.height),
            (self.left, cols * side - self.left - self.width),
        )
        padded = jnp.pad(images, edges, constant_values=outside)
        return padded.reshape(-1, rows, side, cols, side).swapaxes(2, 3)

    def gather(self, blocks: jax.Array) -> jax.Array:
        """Blocks [N, R, C, s, s, ...] -> images [N, height, width, ...]."""
        return pixel_shuffle(blocks)[
            :, self.top : self.top + self.height, self.left : self.left + self.width
        ]


def prefers_subpixel() -> bool:
    """Whether loss and argmax are faster on `SubpixelLogits` on the default device."""
    return jax.default_backend() in ("gpu", "tpu")


def pixel_shuffle(blocks: jax.Array) -> jax.Array:
    """f[N, R, C, s, s, ...] -> f[N, s R, s C, ...]."""
    batch, rows, cols, height, width = blocks.shape[:5]
    return blocks.swapaxes(2, 3).reshape(batch, rows * height, cols * width, *blocks.shape[5:])
