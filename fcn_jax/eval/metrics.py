"""Segmentation scores, computed from one confusion matrix over a set of images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fcn_jax.errors import listing
from fcn_jax.plugins.api import IGNORE_INDEX, Classes


class ConfusionMatrix:
    """Counts of pixels by true and predicted class.

    Attributes:
        counts: i64[K,K]; rows are the ground truth, columns the prediction.
        ignored: number of pixels whose ground truth is `IGNORE_INDEX`.
    """

    def __init__(self, num_classes: int) -> None:
        """Start with zeros."""
        self.counts = np.zeros((num_classes, num_classes), np.int64)
        self.ignored = 0

    def add(self, ground_truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count an image.

        Args:
            ground_truth: u8[...], labels 0 to K-1, or 255 for pixels that are ignored.
            prediction: u8[...], labels 0 to K-1.
        """
        num_classes = len(self.counts)
        valid = ground_truth != IGNORE_INDEX
        pairs = ground_truth[valid].astype(np.int64) * num_classes + prediction[valid]
        self.ignored += valid.size - int(np.count_nonzero(valid))
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
            ignored=self.ignored,
        )


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a set of images, as in Long et al. 2015, section 5.

    The four scores are between 0 and 1, or NaN if no pixel counts.

    Attributes:
        miou: mean of `iou` over the classes that occur in the ground truth or the prediction.
        iou: f64[K], intersection over union; NaN for a class that occurs in neither.
        pixel_accuracy: share of pixels with the right class.
        class_accuracy: mean over the classes in the ground truth of the share of their pixels that
            have the right class.
        fwiou: mean of `iou`, weighted by the classes' pixels in the ground truth.
        pixels: i64[K], pixels of each class in the ground truth.
        ignored: number of pixels that are ignored.
    """

    miou: float
    iou: np.ndarray
    pixel_accuracy: float
    class_accuracy: float
    fwiou: float
    pixels: np.ndarray
    ignored: int = 0

    @property
    def classes_scored(self) -> int:
        """Number of classes in the mean `miou`."""
        return int(np.count_nonzero(~np.isnan(self.iou)))

    def summary(self) -> str:
        """One line, such as "mIoU 0.5834 (9 of 11 classes), pixel accuracy 0.9062"."""
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
        """One line for each limit of the scores.

        Args:
            classes: names of the K classes.

        Returns:
            Lines about a set without labeled pixels or with few, a mean over one class, and classes
            that do not occur in the ground truth.
        """
        if not self.pixels.any():
            reason = (
                f"no pixel has a class: all {self.ignored} are ignored (label {IGNORE_INDEX})"
                if self.ignored
                else "there is no pixel"
            )
            return (f"{reason}, so there are no scores",)
        lines = []
        if self.ignored_share > 0.5:
            lines.append(
                f"{self.ignored_share:.1%} of the pixels are ignored: the scores cover the others"
            )
        if self.classes_scored == 1:
            name = classes.names[int(np.flatnonzero(~np.isnan(self.iou))[0])]
            lines.append(
                f"the scores cover one class of {len(classes)}, '{name}': no other class occurs in "
                "the ground truth or the predictions, so they do not show whether the model "
                "separates classes"
            )
        if absent := self._absent(classes):
            predicted = [
                name
                for name, pixels, iou in zip(classes.names, self.pixels, self.iou, strict=True)
                if not pixels and iou == 0
            ]
            counted = f"; predicted anyway, counted as 0 in mIoU: {listing(predicted)}"
            lines.append(
                f"{len(absent)} of {len(classes)} classes have no pixel in the ground truth: "
                f"{listing(absent)}{counted if predicted else ''}"
            )
        return tuple(lines)

    def table(self, classes: Classes) -> str:
        """A table for the terminal: each class's IoU and share of pixels, then the four scores.

        "-" stands for an undefined score.
        """
        width = max(len("pixel accuracy"), *map(len, classes.names))
        total = max(int(self.pixels.sum()), 1)
        lines = [f"{'class':<{width}}     IoU   share of pixels"]
        for name, iou, pixels in zip(classes.names, self.iou, self.pixels, strict=True):
            lines.append(f"{name:<{width}}  {_figure(iou)}   {pixels / total:14.2%}")
        fewer = self.classes_scored < len(classes)
        over = f" (over {self.classes_scored} of {len(classes)} classes)" if fewer else ""
        lines += [
            "",
            f"{'mIoU':<{width}}  {_figure(self.miou)}{over}",
            f"{'pixel accuracy':<{width}}  {_figure(self.pixel_accuracy)}",
            f"{'class accuracy':<{width}}  {_figure(self.class_accuracy)}",
            f"{'fwIoU':<{width}}  {_figure(self.fwiou)}",
        ]
        if self.ignored:
            lines += ["", f"{self.ignored_share:.2%} of all pixels are ignored"]
        return "\n".join(lines)

    def to_dict(self, classes: Classes) -> dict[str, Any]:
        """JSON-able, with None for undefined scores.

        Args:
            classes: names of the K classes.

        Returns:
            The four scores; `iou` by class name; `classes_scored`, the number of classes in the
            mean `miou`, of `classes`; `absent`, the names of classes without a pixel in the ground
            truth; `ignored_share`, the share of pixels that are ignored.
        """
        names = ("miou", "pixel_accuracy", "class_accuracy", "fwiou")
        return {
            **{name: _defined(getattr(self, name)) for name in names},
            "classes_scored": self.classes_scored,
            "classes": len(classes),
            "absent": self._absent(classes),
            "ignored_share": _defined(self.ignored_share),
            "iou": {
                name: _defined(value) for name, value in zip(classes.names, self.iou, strict=True)
            },
        }

    @property
    def ignored_share(self) -> float:
        """Share of the set's pixels that are ignored; NaN for a set without pixels."""
        total = int(self.pixels.sum()) + self.ignored
        return self.ignored / total if total else float("nan")

    def _absent(self, classes: Classes) -> list[str]:
        return [name for name, pixels in zip(classes.names, self.pixels, strict=True) if not pixels]


def _figure(value: float) -> str:
    return "     -" if np.isnan(value) else f"{value:6.4f}"


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float:
    finite = values[~np.isnan(values)]
    return float(finite.mean()) if finite.size else float("nan")
