"""Images in blocks, as the product of a transposed convolution gives them: the layout in which GPUs and TPUs compute loss and argmax.

To put the blocks side by side is a copy of the largest array that there is, forward and backward;
labels are rearranged more cheaply.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SubpixelLogits:
    """Images of which block (r, c) holds the pixels from (s r, s c) on, less a border.

    Attributes:
        values: f[N, R, C, K, s, s]; the classes lie along `CLASS_AXIS`, before the pixels, so that
            neighbors in memory are pixels.
        top: rows of the first blocks that are no part of the images.
        left: columns likewise.
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
        """A part of the images, from (`top`, `left`) on; no larger than they are."""
        height, width = min(height, self.height - top), min(width, self.width - left)
        return dataclasses.replace(
            self, top=self.top + top, left=self.left + left, height=height, width=width
        )

    @property
    def images(self) -> jax.Array:
        """The images themselves, f[N, height, width, K]: the copy that blocks are there to avoid."""
        return self.gather(jnp.moveaxis(self.values, self.CLASS_AXIS, -1))

    def scatter(self, images: jax.Array, outside: int) -> jax.Array:
        """Images [N, height, width] -> their blocks [N, R, C, s, s], with `outside` around them."""
        _, rows, cols, _, side, _ = self.values.shape
        edges = (
            (0, 0),
            (self.top, rows * side - self.top - self.height),
            (self.left, cols * side - self.left - self.width),
        )
        padded = jnp.pad(images, edges, constant_values=outside)
        return padded.reshape(-1, rows, side, cols, side).swapaxes(2, 3)

    def gather(self, blocks: jax.Array) -> jax.Array:
        """SubpixelLogits [N, R, C, s, s, ...] -> the images that they hold, [N, height, width, ...]."""
        return pixel_shuffle(blocks)[
            :, self.top : self.top + self.height, self.left : self.left + self.width
        ]


def pixel_shuffle(blocks: jax.Array) -> jax.Array:
    """f[N, R, C, s, s, ...] -> f[N, s R, s C, ...]."""
    batch, rows, cols, height, width = blocks.shape[:5]
    return blocks.swapaxes(2, 3).reshape(batch, rows * height, cols * width, *blocks.shape[5:])
