"""A trained model as a function from images to masks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fcn_jax import checkpoint
from fcn_jax.data.decode import read_image
from fcn_jax.data.value_range import Scaling, dtype_of, from_json
from fcn_jax.errors import ConfigError
from fcn_jax.eval import padding
from fcn_jax.eval.draw import generic_classes
from fcn_jax.eval.protocols import Multiscale, Native, Protocol, Resize, Sliding, make
from fcn_jax.eval.sliding import Canvas
from fcn_jax.eval.tiles import Batches, Job, Prediction, Whole
from fcn_jax.eval.views import Views
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.models.spec import resolve
from fcn_jax.nn._subpixel import SubpixelLogits, prefers_subpixel
from fcn_jax.plugins.api import IGNORE_INDEX, Classes
from fcn_jax.runtime.compiler import compiler_options

Key = TypeVar("Key")


class Predictor:
    """A trained model as a function from an image to a mask.

    A program is compiled for each size of its input. By default that is the image's own size, and
    the mask is exact. For images of many sizes, `pad_to_multiple` saves programs at the cost of
    differences near the bottom and right border; see `fcn_jax.eval.padding`. Other protocols, such
    as sliding windows, run the network on other parts or sizes of the image.

    Attributes:
        classes: names and colors of the labels.
        protocol: the protocol.
        pad_to_multiple: images are padded to a multiple of it.
        num_classes: number of classes K; 2 for the task "binary".
        task: the model's task.
        channels: number of channels of the images.
        value_range: how the values of image files are scaled; None for each file alone.
        num_devices: number of devices that share the tiles.
    """

    def __init__(
        self,
        model: Segmenter,
        classes: Classes | None = None,
        *,
        protocol: Protocol | str | None = None,
        pad_to_multiple: int = 1,
        batch_size: int | None = None,
        devices: Sequence[jax.Device] = (),
        blocks: bool | None = None,
        value_range: Scaling | None = None,
    ) -> None:
        """Wrap a model and put it into eval mode.

        Args:
            model: the model.
            classes: names and colors; numbered classes if None.
            protocol: see `fcn_jax.eval.protocols`, or the name of one; each image whole at its own
                size if None.
            pad_to_multiple: images are padded to a multiple of it, in pixels, at least 1. Protocols
                whose tiles have one size ignore it.
            batch_size: number of tiles of one size (images or windows) that a device computes
                together; 8 windows on GPUs and TPUs, otherwise 1, if None.
            devices: devices that share the tiles; the default device if there are none. Results do
                not depend on it.
            blocks: compute the argmax in the head's sub-pixel layout, if the head has one; None
                does so on GPUs and TPUs.
            value_range: how the values of image files are scaled; see
                `fcn_jax.data.decode.read_image`.

        Raises:
            ConfigError: the model has more than 255 classes, `pad_to_multiple` or `batch_size` is
                below 1, or the task is "multilabel" and the protocol is not "native".
        """
        if model.spec.num_classes > IGNORE_INDEX:
            raise ConfigError(
                f"num_classes is {model.spec.num_classes}; a mask of bytes holds at most "
                f"{IGNORE_INDEX} classes"
            )
        if pad_to_multiple < 1:
            raise ConfigError(f"pad_to_multiple is {pad_to_multiple}; it must be at least 1")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        model.eval()
        preprocess = resolve(model.spec).preprocess
        in_blocks = prefers_subpixel() if blocks is None else blocks
        in_blocks = in_blocks and model.spec.task != "multilabel"
        self.num_classes = model.spec.num_labels
        self.channels, self.value_range = model.spec.in_channels, value_range
        self.classes = classes or generic_classes(self.num_classes)
        self.protocol = protocol if isinstance(protocol, Protocol) else make(protocol)
        self.task = model.spec.task
        if self.task == "multilabel" and not isinstance(self.protocol, Native):
            raise ConfigError(
                f"the task is 'multilabel', and the protocol {self.protocol.name} needs one class "
                "per pixel; use native"
            )
        self.pad_to_multiple = pad_to_multiple
        if batch_size is None:
            in_windows = isinstance(self.protocol, Sliding) and jax.default_backend() != "cpu"
            batch_size = 8 if in_windows else 1
        self._batch_size = batch_size * max(1, len(devices))
        self._devices = devices if len(devices) > 1 else ()
        self.num_devices = max(1, len(devices))
        model_task = model.spec.task
        graphdef, state = nnx.split(model)
        self._state = self._placed(state)

        def run(state: nnx.State, images: jax.Array, blocks: bool) -> jax.Array | SubpixelLogits:
            network, x = nnx.merge(graphdef, state), normalize(images, preprocess)
            return network.subpixel_outputs(x)["out"] if blocks else network(x)

        def label(logits: jax.Array, axis: int) -> jax.Array:
            if model_task == "binary":  # the sigmoid is above 1/2
                return (logits.squeeze(axis) > 0).astype(jnp.uint8)
            if model_task == "multilabel":
                return (logits > 0).astype(jnp.uint8)
            return jnp.argmax(logits, axis).astype(jnp.uint8)

        def segment(state: nnx.State, images: jax.Array) -> jax.Array:
            logits = run(state, images, in_blocks)
            if isinstance(logits, SubpixelLogits):
                return logits.gather(label(logits.values, SubpixelLogits.CLASS_AXIS))
            return label(logits, -1)

        def score(state: nnx.State, images: jax.Array, probabilities: bool) -> jax.Array:
            logits: Any = run(state, images, False)
            logits = logits.astype(jnp.float32)
            if model_task == "binary":  # the sigmoid is the softmax of (0, logit)
                logits = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
            return jax.nn.softmax(logits) if probabilities else logits

        def decide(state: nnx.State, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = score(state, images, False)
            confidence = jnp.exp(jnp.max(logits, -1) - jax.nn.logsumexp(logits, -1))
            return jnp.argmax(logits, -1).astype(jnp.uint8), confidence

        options = compiler_options()
        self._segment = jax.jit(segment, compiler_options=options)
        self._decide = jax.jit(decide, compiler_options=options)
        self._score = jax.jit(score, static_argnums=2, compiler_options=options)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, weights: str | None = None, **options: Any
    ) -> Predictor:
        """Load a run (its best checkpoint), one of its checkpoints, or a converted model.

        `weights` is "ema" for the averages of the weights, or "raw"; None takes the averages if the
        run has them (`optim.ema_decay`). `options` are keyword arguments of `Predictor`.

        Raises:
            CheckpointError: the path is not a checkpoint, is incomplete, holds only a backbone, or
                has no averages.
        """
        model, spec = checkpoint.load_model(path, weights)
        return cls(model, spec.classes, value_range=from_json(spec.value_range), **options)

    def update(self, *states: nnx.State) -> None:
        """Replace the values of parameters and statistics, such as by those of a training state."""
        self._state = self._placed(nnx.merge_state(self._state, *states))

    def __call__(self, image: np.ndarray | str | Path) -> np.ndarray:
        """Segment one image.

        Args:
            image: u8[H,W,C], or f32[H,W,C] for a model of stored values (`model.mean`); C is 3,
                RGB, for most models. Or an image file, which is read upright.

        Returns:
            u8[H,W], labels 0 to K-1; for the task "multilabel", u8[H,W,K] of 0 and 1.

        Raises:
            DataError: the file cannot be read as an image.
            ValueError: the array is not such an image.
        """
        if isinstance(image, str | Path):
            image = read_image(Path(image), value_range=self.value_range, channels=self.channels)
        dtype, channels = dtype_of(self.value_range), self.channels
        if image.dtype != dtype or image.ndim != 3 or image.shape[2] != channels:
            kind = "u8" if dtype == "uint8" else "f32"
            raise ValueError(
                f"expected an image {kind}[H,W,{channels}]{', RGB' * (channels == 3)}; got "
                f"{image.dtype}{list(image.shape)}"
            )
        ((_, prediction),) = self.stream([(None, image)])
        return prediction.mask

    def batch(self, images: np.ndarray) -> np.ndarray:
        """Segment images of one size, whole and together: [N,H,W,C] -> masks as of a call."""
        height, width = images.shape[1:3]
        masks = self._segment(self._state, padding.pad(images, self.pad_to_multiple))
        return np.asarray(masks)[:, :height, :width]

    def stream(
        self, images: Iterable[tuple[Key, np.ndarray]], *, confidence: bool = False
    ) -> Iterator[tuple[Key, Prediction]]:
        """Segment images with the protocol, while the next ones are read.

        Tiles of one size run together, across images: `batch_size` on each device.

        Args:
            images: pairs of anything and an image, as in a call.
            confidence: also return the confidence of each pixel.

        Yields:
            The first part of each pair and the prediction of its image, in order.
        """
        batches = Batches(lambda tiles: self._run(tiles, confidence), self._batch_size)
        waiting: deque[tuple[Key, Job]] = deque()
        for key, image in images:
            waiting.append((key, job := self._job(image, confidence)))
            for tile in job.tiles():
                batches.add(tile, job)
            # One image late, so that the device computes while the caller uses the one before.
            while len(waiting) > 1 and waiting[0][1].complete:
                key, job = waiting.popleft()
                yield key, job.result()
        batches.flush()
        for key, job in waiting:
            yield key, job.result()

    def _job(self, image: np.ndarray, confidence: bool) -> Job:
        if isinstance(self.protocol, Sliding):
            return Canvas(image, self.protocol, self.num_classes, confidence=confidence)
        multiple = self.pad_to_multiple if self.protocol.many_sizes else 1
        if isinstance(self.protocol, Resize | Multiscale):
            return Views(
                image, self.protocol, self.num_classes, multiple=multiple, confidence=confidence
            )
        return Whole(image, multiple=multiple)

    def _run(self, tiles: np.ndarray, confidence: bool) -> Any:
        """Outputs of the network on tiles [N,h,w,C], as the jobs of the protocol take them."""
        placed = self._placed(tiles, "data")
        if not isinstance(self.protocol, Sliding | Resize | Multiscale):
            if confidence:
                return self._decide(self._state, placed)
            return (self._segment(self._state, placed),)
        probabilities = (
            isinstance(self.protocol, Sliding) and self.protocol.average == "probabilities"
        )
        scores = self._score(self._state, placed, probabilities)
        return jax.device_put(scores, self._devices[0]) if self._devices else scores

    def _placed(self, arrays: Any, axis: str | None = None) -> Any:
        """Arrays on all devices, or split over them along the first axis if `axis` is "data"."""
        if not self._devices:
            return arrays
        mesh = jax.make_mesh(
            (len(self._devices),), ("data",), axis_types=(AxisType.Auto,), devices=self._devices
        )
        where = NamedSharding(mesh, PartitionSpec(axis) if axis else PartitionSpec())
        # A loaded model has only the shapes of random keys, which eval mode does not use.
        return jax.tree.map(
            lambda leaf: (
                leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.device_put(leaf, where)
            ),
            arrays,
        )
