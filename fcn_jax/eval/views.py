"""Scores of resized and mirrored views of an image, averaged at the image's own size."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.eval import padding
from fcn_jax.eval.protocols import Multiscale, Resize, Size, resized
from fcn_jax.eval.tiles import Prediction
from fcn_jax.nn._resize import _interpolation


class Views:
    """The prediction of one image, from its views in the order of `tiles`."""

    def __init__(
        self,
        image: np.ndarray,
        protocol: Resize | Multiscale,
        num_classes: int,
        *,
        multiple: int,
        confidence: bool,
    ) -> None:
        """Plan the views.

        Args:
            image: [H,W,C].
            protocol: the settings.
            num_classes: number of classes K.
            multiple: views are padded to a multiple of it, in pixels, at least 1.
            confidence: whether the prediction has the confidence.
        """
        self._image, self._multiple, self._confidence = image, multiple, confidence
        self._size: Size = (image.shape[0], image.shape[1])
        flips: Sequence[bool] = (False,)
        if isinstance(protocol, Resize):
            sizes = [protocol.size]
        else:
            sizes = [
                (max(1, round(self._size[0] * scale)), max(1, round(self._size[1] * scale)))
                for scale in protocol.scales
            ]
            flips = (False, True) if protocol.flip else flips
        self._views = [(size, mirrored) for size in sizes for mirrored in flips]
        self._canvas = (_up(self._size[0], multiple), _up(self._size[1], multiple))
        self._total = jnp.zeros((*self._canvas, num_classes))
        self._taken = 0

    def tiles(self) -> Iterator[np.ndarray]:
        """Yield the views [h,w,C]."""
        for size, mirrored in self._views:
            view = resized(self._image, size)
            view = view[:, ::-1] if mirrored else view
            yield padding.pad(view[None], self._multiple)[0]

    def take(self, logits: jax.Array, index: int) -> None:
        """Add the logits of the next view: f32[N,h,w,K][index]."""
        (height, width), mirrored = self._views[self._taken]
        sides = logits.shape[1:3]
        if (height, width) == self._size == self._canvas:
            self._total = _add(self._total, logits, index, mirrored=mirrored)
        else:
            # The matrices are arguments, not constants: padded views of many sizes share a program.
            down = _matrix(height, self._size[0], (self._canvas[0], sides[0]))
            across = _matrix(width, self._size[1], (self._canvas[1], sides[1]))
            if mirrored:
                across[: self._size[1]] = across[: self._size[1]][::-1].copy()
            self._total = _add_resized(self._total, logits, index, down, across)
        self._taken += 1

    @property
    def complete(self) -> bool:
        """Whether all views are taken."""
        return self._taken == len(self._views)

    def result(self) -> Prediction:
        """The prediction of the image's size."""
        labels, confidence = _decide(self._total, len(self._views))
        height, width = self._size
        mask = np.asarray(labels)[:height, :width]
        return Prediction(
            mask, np.asarray(confidence)[:height, :width] if self._confidence else None
        )


def _up(length: int, multiple: int) -> int:
    return length + -length % multiple


def _matrix(old: int, new: int, padded: Size) -> np.ndarray:
    """Matrix [padded new, padded old] of the bilinear resize from `old` to `new` pixels."""
    matrix = np.zeros(padded, np.float32)
    matrix[:new, :old] = _interpolation(old, new, False, np.dtype(np.float32))
    return matrix


@functools.partial(jax.jit, static_argnames="mirrored", donate_argnums=0)
def _add(total: jax.Array, logits: jax.Array, index: int, *, mirrored: bool) -> jax.Array:
    view = lax.dynamic_index_in_dim(logits, index, keepdims=False)
    return total + jax.nn.softmax(view[:, ::-1] if mirrored else view)


@functools.partial(jax.jit, donate_argnums=0)
def _add_resized(
    total: jax.Array, logits: jax.Array, index: int, down: jax.Array, across: jax.Array
) -> jax.Array:
    view = lax.dynamic_index_in_dim(logits, index, keepdims=False)
    view = jnp.einsum("hwc,vw->hvc", view, across, precision=lax.Precision.HIGHEST)
    view = jnp.einsum("hvc,uh->uvc", view, down, precision=lax.Precision.HIGHEST)
    return total + jax.nn.softmax(view)


@jax.jit
def _decide(total: jax.Array, views: int) -> tuple[jax.Array, jax.Array]:
    return jnp.argmax(total, -1).astype(jnp.uint8), jnp.max(total, -1) / views
