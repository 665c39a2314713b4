"""Scores of a segmentation, all from one confusion matrix over the whole set."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fcn_jax.errors import listing
from fcn_jax.plugins.api import IGNORE_INDEX, Classes


class ConfusionMatrix:
    """Counts of pixels by true and predicted class.

    Attributes:
        counts: i64[K, K]; rows are the truth, columns the prediction.
        void: pixels of the truth that do not count.
    """

    def __init__(self, num_classes: int) -> None:
        """Start with zeros."""
        self.counts = np.zeros((num_classes, num_classes), np.int64)
        self.void = 0

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count an image.

        Args:
            truth: u8[...], labels 0 to K-1, or 255 for pixels that do not count.
            prediction: u8[...], labels 0 to K-1.
        """
        num_classes = len(self.counts)
        valid = truth != IGNORE_INDEX
        pairs = truth[valid].astype(np.int64) * num_classes + prediction[valid]
        self.void += valid.size - int(np.count_nonzero(valid))
        self.counts += np.bincount(pairs, minlength=num_classes**2).reshape(
            num_classes, num_classes
        )

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
            void=self.void,
        )


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a whole set; Long et al. 2015, section 5.

    All are 0 to 1, and NaN where no pixel counts.

    Attributes:
        miou: mean of `iou` over the classes that occur in the truth or the prediction.
        iou: f64[K], intersection over union; NaN for a class that occurs in neither.
        pixel_accuracy: share of pixels that are right.
        class_accuracy: mean over the classes in the truth of the share of their pixels that are
            right.
        fwiou: mean of `iou` weighted by the classes' true pixels.
        pixels: i64[K], true pixels of each class.
        void: pixels of the truth that do not count.
    """

    miou: float
    iou: np.ndarray
    pixel_accuracy: float
    class_accuracy: float
    fwiou: float
    pixels: np.ndarray
    void: int = 0

    @property
    def classes_scored(self) -> int:
        """Number of classes that `miou` is the mean over."""
        return int(np.count_nonzero(~np.isnan(self.iou)))

    def summary(self) -> str:
        """The main figures and the number of classes that they rest on, in one line.

        Returns:
            Such as "mIoU 0.5834 (9 of 11 classes), pixel accuracy 0.9062".
        """
        if not self.pixels.any():
            return "mIoU - (no labeled pixel)"
        classes, scored = len(self.iou), self.classes_scored
        basis = (
            f"{scored} of {classes} classes"
            if scored < classes
            else f"{classes} class{'es' if classes > 1 else ''}"
        )
        return f"mIoU {self.miou:.4f} ({basis}), pixel accuracy {self.pixel_accuracy:.4f}"

    def notes(self, classes: Classes) -> tuple[str, ...]:
        """One line for each thing that the scores do not show.

        Args:
            classes: names of the K classes.

        Returns:
            Lines about a set without labeled pixels or with few, a mean over one class, and classes
            without a true pixel.
        """
        if not self.pixels.any():
            reason = (
                f"no pixel has a class: all {self.void} are void"
                if self.void
                else "there is no pixel"
            )
            return (f"{reason}, so there are no scores",)
        lines = []
        if self.void_share > 0.5:
            lines.append(
                f"{self.void_share:.1%} of the pixels are void: the scores rest on the others"
            )
        if self.classes_scored == 1:
            name = classes.names[int(np.flatnonzero(~np.isnan(self.iou))[0])]
            lines.append(
                f"the scores rest on one class of {len(classes)}, '{name}': no other class occurs in the masks or the predictions, "
                "so they do not show that the model tells classes apart"
            )
        if absent := self._absent(classes):
            predicted = [
                name
                for name, pixels, iou in zip(classes.names, self.pixels, self.iou, strict=True)
                if not pixels and iou == 0
            ]
            counted = (
                f"; predicted nevertheless, and counted as 0 in mIoU: {listing(predicted)}"
                if predicted
                else ""
            )
            lines.append(
                f"{len(absent)} of {len(classes)} classes have no true pixel: {listing(absent)}{counted}"
            )
        return tuple(lines)

    def to_dict(self, classes: Classes) -> dict[str, Any]:
        """JSON-able, with None for undefined figures.

        Args:
            classes: names of the K classes.

        Returns:
            The four figures; `iou` by class name; `classes_scored`, the number of classes that
            `miou` is the mean over, of `classes`; `absent`, the names of classes without a true
            pixel; `void_share`, the share of pixels that do not count.
        """
        figures = {
            name: _defined(getattr(self, name))
            for name in ("miou", "pixel_accuracy", "class_accuracy", "fwiou")
        }
        return {
            **figures,
            "classes_scored": self.classes_scored,
            "classes": len(classes),
            "absent": self._absent(classes),
            "void_share": _defined(self.void_share),
            "iou": {
                name: _defined(value) for name, value in zip(classes.names, self.iou, strict=True)
            },
        }

    @property
    def void_share(self) -> float:
        """Share of the set's pixels that do not count; NaN for a set without pixels."""
        total = int(self.pixels.sum()) + self.void
        return self.void / total if total else float("nan")

    def _absent(self, classes: Classes) -> list[str]:
        return [name for name, pixels in zip(classes.names, self.pixels, strict=True) if not pixels]


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float:
    finite = values[~np.isnan(values)]
    return float(finite.mean()) if finite.size else float("nan")
