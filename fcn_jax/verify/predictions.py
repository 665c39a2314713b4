"""Predictions of the two sides: how far they agree, and pictures of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pydantic

from fcn_jax.eval.metrics import ConfusionMatrix
from fcn_jax.verify.types import Outputs


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of the two sides' predictions at one image size, in eval mode.

    Attributes:
        size: height and width in pixels.
        argmax: share of pixels to which JAX assigns the same class as PyTorch float64, 0 to 1.
        torch_argmax: the same for PyTorch in the compared precision, its worst run.
        miou: mean IoU of JAX's classes against PyTorch float64's, 0 to 1.
    """

    size: tuple[int, int]
    argmax: float
    torch_argmax: float
    miou: float


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The two sides' predictions for one image; all arrays have one size.

    Attributes:
        image: u8[H,W,3] RGB.
        torch: u8[H,W] classes by PyTorch float64.
        jax: u8[H,W] classes by JAX.
        difference: f32[H,W], largest difference of a pixel's logits as a share of the largest
            absolute logit.
        num_classes: number of classes.
    """

    image: np.ndarray
    torch: np.ndarray
    jax: np.ndarray
    difference: np.ndarray
    num_classes: int

    __pydantic_config__ = pydantic.ConfigDict(arbitrary_types_allowed=True)


def agreement_at(size: tuple[int, int], outputs: Outputs, num_classes: int) -> Agreement:
    """Agreement on the output "out", at an image size."""
    expected = outputs.reference["out"].argmax(1)
    ours = outputs.jax["out"].argmax(1)
    worst = min(float((run["out"].argmax(1) == expected).mean()) for run in outputs.torch)
    matrix = ConfusionMatrix(num_classes)
    matrix.add(expected.astype(np.uint8), ours.astype(np.uint8))
    return Agreement(size, float((ours == expected).mean()), worst, matrix.scores().miou)


def pictures_of(image: np.ndarray, outputs: Outputs, num_classes: int) -> Pictures:
    """Predictions for the first image, u8[H,W,3]."""
    expected, ours = outputs.reference["out"][0], outputs.jax["out"][0]
    difference = np.abs(ours - expected).max(0) / max(np.abs(expected).max(), 1e-300)
    return Pictures(
        image,
        expected.argmax(0).astype(np.uint8),
        ours.argmax(0).astype(np.uint8),
        difference.astype(np.float32),
        num_classes,
    )
