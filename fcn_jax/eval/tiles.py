"""Tiles: the arrays [h,w,C] that a network runs on to predict an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from fcn_jax.eval import padding


class Prediction(NamedTuple):
    """The prediction of one image.

    Attributes:
        mask: u8[H,W], labels 0 to K-1; for the task "multilabel", u8[H,W,K] of 0 and 1.
        confidence: f32[H,W], the probability of the predicted label; None if it was not asked for.
    """

    mask: np.ndarray
    confidence: np.ndarray | None = None


class Job(Protocol):
    """An image that is being predicted from the network's outputs on its tiles."""

    def tiles(self) -> Iterator[np.ndarray]:
        """Yield the network's inputs, [h,w,C]."""

    def take(self, outputs: Any, index: int) -> None:
        """Take the outputs of the next tile, which is number `index` of the batch."""

    @property
    def complete(self) -> bool:
        """Whether all tiles are taken."""

    def result(self) -> Prediction:
        """Wait for the prediction."""


class Whole:
    """An image that runs once; the network's program computes its labels."""

    def __init__(self, image: np.ndarray, *, multiple: int) -> None:
        """Pad [H,W,C] to a multiple of `multiple` pixels."""
        self._image, self._multiple = image, multiple
        self._outputs: Any = None

    def tiles(self) -> Iterator[np.ndarray]:
        """Yield the image."""
        yield padding.pad(self._image[None], self._multiple)[0]

    def take(self, outputs: tuple[jax.Array, ...], index: int) -> None:
        """Take labels u8[N,h,w] or u8[N,h,w,K], and perhaps the confidence f32[N,h,w]."""
        self._outputs = outputs, index

    @property
    def complete(self) -> bool:
        """Whether the image ran."""
        return self._outputs is not None

    def result(self) -> Prediction:
        """The prediction of the image's size."""
        outputs, index = self._outputs
        height, width = self._image.shape[:2]
        return Prediction(*(np.asarray(out)[index, :height, :width] for out in outputs))


class Batches:
    """Runs tiles of one size together. A batch that is not full repeats its last tile."""

    def __init__(self, run: Callable[[np.ndarray], Any], size: int) -> None:
        """Run up to `size` tiles with `run`, [size,h,w,C] -> outputs."""
        self._run, self._size = run, size
        self._tiles: list[np.ndarray] = []
        self._jobs: list[Job] = []
        self._previous: Any = None

    def add(self, tile: np.ndarray, job: Job) -> None:
        """Run a tile, now or with the next ones."""
        if self._tiles and self._tiles[0].shape != tile.shape:
            self.flush()
        self._tiles.append(tile)
        self._jobs.append(job)
        if len(self._tiles) == self._size:
            self.flush()

    def flush(self) -> None:
        """Run the tiles that wait."""
        if not self._tiles:
            return
        missing = self._size - len(self._tiles)
        outputs = self._run(np.stack([*self._tiles, *[self._tiles[-1]] * missing]))
        for index, job in enumerate(self._jobs):
            job.take(outputs, index)
        self._tiles, self._jobs = [], []
        # At most two batches are computed or wait at a time, for the sake of the memory.
        if self._previous is not None:
            jax.block_until_ready(self._previous)
        self._previous = outputs
