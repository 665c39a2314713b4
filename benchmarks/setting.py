"""Settings of a benchmark: model, batch, image size and precision, and random inputs for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from flax import nnx

from fcn_jax.api import ModelSpec, Preprocess
from fcn_jax.config import OptimConfig
from fcn_jax.convert.tables import tables
from fcn_jax.models.build import build
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.models.spec import registered_spec, resolve
from fcn_jax.train import groups, optim
from fcn_jax.train import step as train_step

RECIPE = OptimConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, schedule="constant")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Model, inputs and device of a benchmark.

    Attributes:
        model: name of a registered backbone or model.
        batch: number of images in a batch.
        size: height and width in pixels; must be multiples of 32 for d2l's network, because the
            contenders do not crop its logits.
        dtype: compute dtype, "float32" or "bfloat16" (autocast in PyTorch).
        num_classes: number of classes of the logits.
        head: name of a registered head; ignored if `model` is not a backbone.
        upsampling: option of the head `fcn32s`: "learned" (dense) or "depthwise".
        device: PyTorch's device, "cpu" or "cuda"; JAX uses its default backend.
        torch_mode: mode of torch.compile on GPUs; "max-autotune" tunes kernels for minutes.
        data: folder dataset (`fcn_jax.data.datasets.folder`) for tasks that read files.
        pictures: approximate height and width of the images in `data`.
        scale: range of the random resize factor.
    """

    model: str = "resnet18"
    batch: int = 4
    size: tuple[int, int] = (320, 480)
    dtype: str = "float32"
    num_classes: int = 21
    head: str = "fcn32s"
    upsampling: str = "learned"
    device: str = "cpu"
    torch_mode: str = "max-autotune"
    data: str = ""
    pictures: tuple[int, int] = (375, 500)
    scale: tuple[float, float] = (0.5, 2.0)

    @property
    def spec(self) -> ModelSpec:
        """The spec of the model, without an auxiliary head, which inference does not use."""
        spec = registered_spec(self.model)
        parts: dict[str, Any] = {"aux_head": None}
        if spec.head is None:
            parts = {
                "head": self.head,
                "head_options": {"upsampling": self.upsampling} if self.head == "fcn32s" else {},
            }
        return dataclasses.replace(spec, num_classes=self.num_classes, dtype=self.dtype, **parts)

    @property
    def is_d2l(self) -> bool:
        """Whether the model is d2l's network, a ResNet with the head `fcn32s`.

        All contenders and tasks support it.
        """
        return ("model", "d2l") in tables(self.spec)

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of the backbone."""
        return resolve(self.spec).preprocess

    def build(self) -> Segmenter:
        """Build the library's model with random parameters."""
        return build(self.spec, rngs=nnx.Rngs(0))

    def images(self) -> np.ndarray:
        """Random images: u8[N,H,W,3]."""
        return np.random.default_rng(0).integers(0, 256, (self.batch, *self.size, 3), np.uint8)

    def features(self, channels: int, stride: int) -> np.ndarray:
        """Random features as the input of a head: f32[N,H/stride,W/stride,C]."""
        shape = (self.batch, self.size[0] // stride, self.size[1] // stride, channels)
        return np.abs(np.random.default_rng(2).standard_normal(shape, np.float32))

    def labels(self) -> np.ndarray:
        """Random labels in blocks of 16x16 pixels, a tenth of them `ignore_index`: u8[N,H,W]."""
        rng = np.random.default_rng(1)
        blocks = rng.integers(
            0,
            min(self.num_classes, 255),
            (self.batch, self.size[0] // 16, self.size[1] // 16),
            np.uint8,
        )
        blocks[rng.random(blocks.shape) < 0.1] = 255
        return blocks.repeat(16, 1).repeat(16, 2)


def training_step(setting: Setting, model: nnx.Module, **options: Any) -> tuple[Any, Any]:
    """Return the initial state and the step function that train a model.

    Args:
        setting: the setting of the model.
        model: the model; it need not be the library's.
        options: further arguments of `fcn_jax.train.step.make`.
    """
    optimizer = optim.make(RECIPE, 1000, groups.assign(RECIPE, nnx.state(model, nnx.Param)))
    return train_step.make(model, optimizer, setting.preprocess, **options)  # type: ignore[arg-type]
