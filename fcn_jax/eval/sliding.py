"""Blending of overlapping windows, in memory that does not grow with the longer side of an image.

The windows of an image come in rows along its longer side. Only a band as wide as a window holds
sums of scores; when a row is complete, the pixels that no later row covers get their labels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.eval.protocols import Sliding
from fcn_jax.eval.tiles import Prediction


def starts(length: int, window: int, overlap: float) -> list[int]:
    """First pixels of the windows along a side; the last window ends at the border.

    Args:
        length: of the side, in pixels.
        window: of a window, at most `length`.
        overlap: share of a window, at least 0, below 1.
    """
    stride = max(1, round(window * (1 - overlap)))
    return [*range(0, length - window, stride), length - window]


def importance(protocol: Sliding) -> np.ndarray:
    """Weights of a window's pixels, f32[h,w], at most 1."""
    if protocol.blend == "uniform":
        return np.ones(protocol.window, np.float32)
    down, across = (
        np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 8)) ** 2)
        for side in protocol.window
    )
    return np.maximum(np.outer(down, across), 1e-3).astype(np.float32)


class Canvas:
    """The prediction of one image, from its windows in the order of `tiles`."""

    def __init__(
        self, image: np.ndarray, protocol: Sliding, num_classes: int, *, confidence: bool
    ) -> None:
        """Plan the windows.

        Args:
            image: [H,W,C].
            protocol: the settings.
            num_classes: number of classes K.
            confidence: whether the prediction has the confidence.
        """
        self._size = image.shape[:2]
        self._protocol, self._confidence = protocol, confidence
        self._turned = image.shape[1] > image.shape[0]  # then rows of windows are columns
        missing = (max(0, w - s) for w, s in zip(protocol.window, self._size, strict=True))
        down, right = missing
        self._image = np.pad(image, ((0, down), (0, right), (0, 0)), mode="edge")
        weights = importance(protocol)
        if self._turned:
            self._image, weights = self._image.swapaxes(0, 1), weights.T
        self._weights = jnp.asarray(weights)
        rows, cols = weights.shape
        length, width = self._image.shape[:2]
        self._tops = starts(length, rows, protocol.overlap)
        self._lefts = starts(width, cols, protocol.overlap)
        # One blending program for all images of about this width.
        width = -(-width // cols) * cols
        self._sums = jnp.zeros((rows, width, num_classes)), jnp.zeros((rows, width))
        self._taken = 0
        self._ready: list[tuple[int, jax.Array, jax.Array]] = []
        self._done: list[Prediction] = []

    def tiles(self) -> Iterator[np.ndarray]:
        """Yield the windows [h,w,C], each followed by the mirrored one if the protocol flips."""
        rows, cols = self._weights.shape
        for top in self._tops:
            for left in self._lefts:
                tile = self._image[top : top + rows, left : left + cols]
                tile = tile.swapaxes(0, 1) if self._turned else tile
                yield tile
                if self._protocol.flip:
                    yield tile[:, ::-1]

    def take(self, scores: jax.Array, index: int) -> None:
        """Add the scores of the next window: f32[N,h,w,K][index]."""
        views = 2 if self._protocol.flip else 1
        number, view = divmod(self._taken, views)
        row, col = divmod(number, len(self._lefts))
        self._sums = _add(
            *self._sums,
            scores,
            index,
            self._lefts[col],
            self._weights,
            mirrored=view == 1,
            turned=self._turned,
        )
        self._taken += 1
        if self._taken % (views * len(self._lefts)) == 0:
            following = [*self._tops[1:], self._image.shape[0]]
            self._finish_row(following[row] - self._tops[row])

    def _finish_row(self, rows: int) -> None:
        logits = self._protocol.average == "logits"
        labels, confidence, self._sums = _decide_row(*self._sums, rows, logits=logits)
        self._ready.append((rows, labels, confidence))
        # The row before is fetched now, so that the device computes meanwhile.
        while len(self._ready) > 1:
            self._fetch()

    def _fetch(self) -> None:
        rows, labels, confidence = self._ready.pop(0)
        kept = np.asarray(confidence)[:rows].copy() if self._confidence else None
        self._done.append(Prediction(np.asarray(labels)[:rows].copy(), kept))

    @property
    def complete(self) -> bool:
        """Whether all windows are taken."""
        views = 2 if self._protocol.flip else 1
        return self._taken == views * len(self._tops) * len(self._lefts)

    def result(self) -> Prediction:
        """The prediction of the image's size."""
        while self._ready:
            self._fetch()
        mask = self._whole([part.mask for part in self._done])
        if not self._confidence:
            return Prediction(mask)
        return Prediction(mask, self._whole([part.confidence for part in self._done]))

    def _whole(self, parts: list) -> np.ndarray:
        whole = np.concatenate(parts)
        whole = whole.swapaxes(0, 1) if self._turned else whole
        return np.ascontiguousarray(whole[: self._size[0], : self._size[1]])


@functools.partial(jax.jit, static_argnames=("mirrored", "turned"), donate_argnums=(0, 1))
def _add(
    sums: jax.Array,
    total: jax.Array,
    scores: jax.Array,
    index: int,
    left: int,
    weights: jax.Array,
    *,
    mirrored: bool,
    turned: bool,
) -> tuple[jax.Array, jax.Array]:
    """Add the weighted scores of a window to a band [h,W,K], and its weights to the sum of weights.

    A dynamic `left` and `index` keep this one program.
    """
    window = jax.lax.dynamic_index_in_dim(scores, index, keepdims=False)
    window = window[:, ::-1] if mirrored else window
    window = window.swapaxes(0, 1) if turned else window
    old = jax.lax.dynamic_slice_in_dim(sums, left, window.shape[1], 1)
    new = old + weights[..., None] * window
    old_total = jax.lax.dynamic_slice_in_dim(total, left, window.shape[1], 1)
    return (
        jax.lax.dynamic_update_slice_in_dim(sums, new, left, 1),
        jax.lax.dynamic_update_slice_in_dim(total, old_total + weights, left, 1),
    )


@functools.partial(jax.jit, static_argnames="logits", donate_argnums=(0, 1))
def _decide_row(
    sums: jax.Array, total: jax.Array, rows: int, *, logits: bool
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
    """Labels u8[h,W] and confidence f32[h,W] of a band, and the band moved up by `rows`."""
    labels = jnp.argmax(sums, -1).astype(jnp.uint8)
    mean = sums / jnp.maximum(total, 1e-6)[..., None]  # 0 right of the image
    confidence = jnp.max(jax.nn.softmax(mean) if logits else mean, -1)
    left_over = jnp.arange(len(total)) < len(total) - rows
    sums = jnp.where(left_over[:, None, None], jnp.roll(sums, -rows, 0), 0)
    total = jnp.where(left_over[:, None], jnp.roll(total, -rows, 0), 0)
    return labels, confidence, (sums, total)
