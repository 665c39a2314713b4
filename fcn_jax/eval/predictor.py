"""From images to masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.errors import ConfigError
from fcn_jax.eval.buckets import Buckets
from fcn_jax.eval.draw import generic_classes
from fcn_jax.eval.metrics import ConfusionMatrix
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.segmenter import Segmenter, describe
from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Example, Preprocess
from fcn_jax.runtime.compiler import compiler_options, prefers_blocks


class Predictor:
    """A trained network as a function from an image to a mask.

    Where backbone and head are `maskable`, images of many sizes share a few compiled programs
    (`fcn_jax.eval.buckets`), with the same result up to rounding; otherwise there is one for each
    size.

    Attributes:
        classes: names and colors of the labels.
        num_classes: how many there are.
    """

    def __init__(
        self, model: Segmenter, classes: Classes | None = None, *, blocks: bool | None = None
    ) -> None:
        """Wrap a model, which is put into eval mode; classes are numbered if not given.

        With `blocks` the largest logits are found in the head's block layout, if it has one; by
        default on GPUs and TPUs.
        """
        in_blocks = prefers_blocks() if blocks is None else blocks
        if model.spec.num_classes > IGNORE_INDEX:
            raise ConfigError(
                f"num_classes is {model.spec.num_classes}; a mask of bytes holds {IGNORE_INDEX} classes at most"
            )
        model.eval()
        backbone, head, _ = describe(model.spec)
        preprocess = backbone.preprocess
        self.num_classes = model.spec.num_classes
        self.classes = classes or generic_classes(self.num_classes)
        graphdef, self._state = nnx.split(model)
        self._run = jax.jit(
            lambda state, images, hw: _argmax(graphdef, state, images, preprocess, hw, in_blocks),
            compiler_options=compiler_options(),
        )
        maskable = backbone.maskable and head is not None and head.maskable
        self._buckets = Buckets(step=max(64, 2 * model.features[-1].stride)) if maskable else None

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Predictor:
        """Load a run (its best checkpoint), one of its checkpoints, or a converted model.

        Raises:
            CheckpointError: not a checkpoint, or incomplete, or a backbone alone.
        """
        model, spec = checkpoint.load(path)
        return cls(model, spec.classes)

    def update(self, model: Segmenter) -> None:
        """Take another model's values; it must be built from the same spec."""
        model.eval()
        self._state = nnx.state(model)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Segment one image.

        Args:
            image: u8[H,W,3], RGB.

        Returns:
            u8[H,W], labels 0 to K-1.

        Raises:
            ValueError: the image is not u8[H,W,3].
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image is u8[H,W,3], RGB; got {image.dtype}{list(image.shape)}")
        if self._buckets is None:
            return self.batch(image[None])[0]
        height, width = image.shape[:2]
        padded = np.zeros((1, *self._buckets.fit(height, width), 3), np.uint8)
        padded[0, :height, :width] = image
        return np.asarray(self._run(self._state, padded, (np.int32(height), np.int32(width))))[
            0, :height, :width
        ]

    def batch(self, images: np.ndarray) -> np.ndarray:
        """Segment images of one size, by a program for just that: u8[N,H,W,3], RGB -> u8[N,H,W]."""
        return np.asarray(self._run(self._state, images, None))


def _argmax(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    images: jax.Array,
    preprocess: Preprocess,
    hw: Any,
    blocks: bool,
) -> jax.Array:
    network, x = nnx.merge(graphdef, state), normalize(images, preprocess)
    logits = network.in_blocks(x, hw) if blocks else network(x, hw)
    if isinstance(logits, SubpixelLogits):
        return logits.gather(jnp.argmax(logits.values, SubpixelLogits.CLASS_AXIS).astype(jnp.uint8))
    return jnp.argmax(logits, -1).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class Compared:
    """One image of an evaluation: the example and its predicted mask u8[H,W]."""

    example: Example
    prediction: np.ndarray


def evaluate(
    predictor: Predictor, examples: Iterable[Example], matrix: ConfusionMatrix
) -> Iterable[Compared]:
    """Predict whole images at their own size, count them in `matrix`, and yield each."""
    for example in examples:
        prediction = predictor(example.image)
        matrix.add(example.mask, prediction)
        yield Compared(example, prediction)
