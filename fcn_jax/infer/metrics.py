"""Scores of a segmentation, all from one confusion matrix over the whole set."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fcn_jax.api import IGNORE_INDEX, Classes


class ConfusionMatrix:
    """Counts of pixels by true and predicted class.

    Attributes:
        counts: i64[K, K]; rows are the truth, columns the prediction.
    """

    def __init__(self, num_classes: int) -> None:
        """Start with zeros."""
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count an image.

        Args:
            truth: u8[...], labels 0 to K-1, or 255 for pixels that do not count.
            prediction: u8[...], labels 0 to K-1.
        """
        num_classes = len(self.counts)
        valid = truth != IGNORE_INDEX
        pairs = truth[valid].astype(np.int64) * num_classes + prediction[valid]
        self.counts += np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)

    def scores(self) -> Scores:
        """The scores so far."""
        hits = np.diag(self.counts).astype(np.float64)
        truth, predicted = self.counts.sum(1), self.counts.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = hits / (truth + predicted - hits)
            recall = hits / truth
        total = self.counts.sum()
        present = truth > 0
        return Scores(
            miou=_mean(iou),
            iou=iou,
            pixel_accuracy=float(hits.sum() / total) if total else float("nan"),
            class_accuracy=_mean(recall),
            fwiou=float((truth[present] * iou[present]).sum() / total) if total else float("nan"),
            pixels=truth,
        )


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a whole set; Long et al. 2015, section 5. All are 0 to 1.

    Attributes:
        miou: mean of `iou` over the classes that occur in the truth or the prediction.
        iou: f64[K], intersection over union; NaN for a class that occurs in neither.
        pixel_accuracy: share of pixels that are right.
        class_accuracy: mean over the classes in the truth of the share of their pixels that are right.
        fwiou: mean of `iou` weighted by the classes' true pixels.
        pixels: i64[K], true pixels of each class.
    """

    miou: float
    iou: np.ndarray
    pixel_accuracy: float
    class_accuracy: float
    fwiou: float
    pixels: np.ndarray

    def to_dict(self, classes: Classes) -> dict[str, Any]:
        """JSON-able: the four figures, and `iou` by class name with None for a class that does not occur."""
        figures = {name: getattr(self, name) for name in ("miou", "pixel_accuracy", "class_accuracy", "fwiou")}
        by_class = {name: None if np.isnan(value) else float(value) for name, value in zip(classes.names, self.iou, strict=True)}
        return {**figures, "iou": by_class}


def _mean(values: np.ndarray) -> float:
    finite = values[~np.isnan(values)]
    return float(finite.mean()) if finite.size else float("nan")
