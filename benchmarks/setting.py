"""What a benchmark runs on: model, batch, image size, precision, and inputs drawn for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from flax import nnx

from fcn_jax.api import ModelSpec
from fcn_jax.config import OptimConfig
from fcn_jax.convert.tables import tables
from fcn_jax.models.build import build
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.models.spec import registered_spec

RECIPE = OptimConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, schedule="constant")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        model: registered backbone, or whole model.
        batch: images.
        size: height and width in pixels; multiples of 32 for the chapter's network, whose
            contenders do not crop.
        dtype: compute dtype, "float32" or "bfloat16" (in PyTorch autocast).
        num_classes: of the logits.
        head: registered; of a backbone alone.
        upsampling: option of that head, where it is `fcn32s`: "learned" (dense) or "depthwise".
        device: PyTorch's, "cpu" or "cuda"; JAX takes its default backend.
        torch_mode: torch.compile's, on GPUs; the best of them tunes kernels for some minutes.
        data: folder of images and masks (`fcn_jax.data.datasets.folder`), for tasks that read
            files.
        pictures: about how large its images are.
        scale: range of their random resize.
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
        """The model without its auxiliary head, which inference does not use."""
        spec = registered_spec(self.model)
        parts: dict[str, Any] = {"aux_head": None}
        if spec.head is None:
            parts = {
                "head": self.head,
                "head_options": {"upsampling": self.upsampling} if self.head == "fcn32s" else {},
            }
        return dataclasses.replace(spec, num_classes=self.num_classes, dtype=self.dtype, **parts)

    @property
    def is_chapters(self) -> bool:
        """Whether it is a ResNet with the head `fcn32s`, which all contenders and tasks know."""
        return ("model", "d2l") in tables(self.spec)

    def build(self) -> Segmenter:
        """The library's model, with drawn values."""
        return build(self.spec, rngs=nnx.Rngs(0))

    def images(self) -> np.ndarray:
        """u8[N,H,W,3], drawn."""
        return np.random.default_rng(0).integers(0, 256, (self.batch, *self.size, 3), np.uint8)

    def features(self, channels: int, stride: int) -> np.ndarray:
        """f32[N,H/stride,W/stride,C], drawn: what a head is given."""
        shape = (self.batch, self.size[0] // stride, self.size[1] // stride, channels)
        return np.abs(np.random.default_rng(2).standard_normal(shape, np.float32))

    def labels(self) -> np.ndarray:
        """u8[N,H,W], drawn in blocks, a tenth of them void."""
        rng = np.random.default_rng(1)
        blocks = rng.integers(
            0,
            min(self.num_classes, 255),
            (self.batch, self.size[0] // 16, self.size[1] // 16),
            np.uint8,
        )
        blocks[rng.random(blocks.shape) < 0.1] = 255
        return blocks.repeat(16, 1).repeat(16, 2)
