"""A trained model as a function from images to masks."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.data.decode import read_image
from fcn_jax.errors import ConfigError
from fcn_jax.eval import padding
from fcn_jax.eval.draw import generic_classes
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.models.spec import resolve
from fcn_jax.nn._subpixel import SubpixelLogits, prefers_subpixel
from fcn_jax.plugins.api import IGNORE_INDEX, Classes
from fcn_jax.runtime.compiler import compiler_options


class Predictor:
    """A trained model as a function from an image to a mask.

    A program is compiled for each size of its input. By default that is the image's own size, and
    the mask is exact. For images of many sizes, `pad_to_multiple` saves programs at the cost of
    differences near the bottom and right border; see `fcn_jax.eval.padding`.

    Attributes:
        classes: names and colors of the labels.
        num_classes: number of classes K; 2 for the task "binary".
    """

    def __init__(
        self,
        model: Segmenter,
        classes: Classes | None = None,
        *,
        pad_to_multiple: int = 1,
        blocks: bool | None = None,
    ) -> None:
        """Wrap a model and put it into eval mode.

        Args:
            model: the model.
            classes: names and colors; numbered classes if None.
            pad_to_multiple: images are padded to a multiple of it, in pixels, at least 1.
            blocks: compute the argmax in the head's sub-pixel layout, if the head has one; None
                does so on GPUs and TPUs.

        Raises:
            ConfigError: the model has more than 255 classes or the task "multilabel", or
                `pad_to_multiple` is below 1.
        """
        if model.spec.num_classes > IGNORE_INDEX:
            raise ConfigError(
                f"num_classes is {model.spec.num_classes}; a mask of bytes holds at most "
                f"{IGNORE_INDEX} classes"
            )
        if model.spec.task == "multilabel":
            raise ConfigError("task is 'multilabel'; a mask holds one class per pixel")
        if pad_to_multiple < 1:
            raise ConfigError(f"pad_to_multiple is {pad_to_multiple}; it must be at least 1")
        model.eval()
        preprocess = resolve(model.spec).preprocess
        in_blocks = prefers_subpixel() if blocks is None else blocks
        self.num_classes = model.spec.num_labels
        self.classes = classes or generic_classes(self.num_classes)
        self._multiple, model_task = pad_to_multiple, model.spec.task
        graphdef, self._state = nnx.split(model)

        def label(logits: jax.Array, axis: int) -> jax.Array:
            if model_task == "binary":  # the sigmoid is above 1/2
                return (logits.squeeze(axis) > 0).astype(jnp.uint8)
            return jnp.argmax(logits, axis).astype(jnp.uint8)

        def segment(state: nnx.State, images: jax.Array) -> jax.Array:
            network, x = nnx.merge(graphdef, state), normalize(images, preprocess)
            logits = network.subpixel_outputs(x)["out"] if in_blocks else network(x)
            if isinstance(logits, SubpixelLogits):
                return logits.gather(label(logits.values, SubpixelLogits.CLASS_AXIS))
            return label(logits, -1)

        self._segment = jax.jit(segment, compiler_options=compiler_options())

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, pad_to_multiple: int = 1, weights: str | None = None
    ) -> Predictor:
        """Load a run (its best checkpoint), one of its checkpoints, or a converted model.

        `weights` is "ema" for the averages of the weights, or "raw"; None takes the averages if the
        run has them (`optim.ema_decay`).

        Raises:
            CheckpointError: the path is not a checkpoint, is incomplete, holds only a backbone, or
                has no averages.
        """
        model, spec = checkpoint.load_model(path, weights)
        return cls(model, spec.classes, pad_to_multiple=pad_to_multiple)

    def update(self, *states: nnx.State) -> None:
        """Replace the values of parameters and statistics, such as by those of a training state."""
        self._state = nnx.merge_state(self._state, *states)

    def __call__(self, image: np.ndarray | str | Path) -> np.ndarray:
        """Segment one image.

        Args:
            image: u8[H,W,3], RGB, or an image file, which is read upright.

        Returns:
            u8[H,W], labels 0 to K-1.

        Raises:
            DataError: the file cannot be read as an image.
            ValueError: the array is not u8[H,W,3].
        """
        if isinstance(image, str | Path):
            image = read_image(Path(image))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"expected an image u8[H,W,3], RGB; got {image.dtype}{list(image.shape)}"
            )
        return self.batch(image[None])[0]

    def batch(self, images: np.ndarray) -> np.ndarray:
        """Segment images of one size, u8[N,H,W,3] RGB -> u8[N,H,W]."""
        height, width = images.shape[1:3]
        masks = self._segment(self._state, padding.pad(images, self._multiple))
        return np.asarray(masks)[:, :height, :width]
