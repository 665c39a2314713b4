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
        ignored: i64[], number of pixels whose ground truth is `IGNORE_INDEX`.
    """

    def __init__(self, num_classes: int) -> None:
        """Start with zeros."""
        self.counts = np.zeros((num_classes, num_classes), np.int64)
        self.ignored = np.zeros((), np.int64)

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

    def scores(self, *, boundary_iou: np.ndarray | None = None, ece: float | None = None) -> Scores:
        """The scores so far.

        Args:
            boundary_iou: f64[K], scores of `fcn_jax.eval.boundary`, if they were asked for.
            ece: score of `fcn_jax.eval.calibration`, if it was asked for.
        """
        counts = self.counts.copy()
        hits = np.diag(counts).astype(np.float64)
        truth, predicted = counts.sum(1), counts.sum(0)
        total, correct = counts.sum(), hits.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = hits / (truth + predicted - hits)
            dice = 2 * hits / (truth + predicted)
            precision, recall = hits / predicted, hits / truth
        present = truth > 0
        return Scores(
            miou=mean_of(iou),
            iou=iou,
            pixel_accuracy=ratio(correct, total),
            class_accuracy=mean_of(recall),
            fwiou=ratio((truth[present] * iou[present]).sum(), total),
            micro_iou=ratio(correct, 2 * total - correct),
            dice=dice,
            precision=precision,
            recall=recall,
            pixels=truth,
            counts=counts,
            ignored=int(self.ignored),
            boundary_iou=boundary_iou,
            ece=ece,
        )


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a set of images.

    Every score is between 0 and 1, or NaN where it is undefined: no pixel counts, or for a class
    the denominator is 0. A mean over classes leaves undefined ones out. `to_dict` and `table`
    write None and "-" instead of NaN. With TP, FP and FN of a class, summed over all images:

    Attributes:
        miou: mean of `iou`: over the classes that occur in the ground truth or the prediction
            (Long et al. 2015, section 5).
        iou: f64[K], TP / (TP + FP + FN), intersection over union.
        pixel_accuracy: share of pixels with the right class.
        class_accuracy: mean of `recall`: over the classes in the ground truth.
        fwiou: mean of `iou`, weighted by the classes' pixels in the ground truth.
        micro_iou: the sum of TP over the sum of TP + FP + FN of all classes. SMP's examples report
            it as "dataset IoU". It equals PA / (2 - PA) with the pixel accuracy PA, so that large
            classes decide.
        dice: f64[K], 2 TP / (2 TP + FP + FN), the F1 score.
        precision: f64[K], TP / (TP + FP); undefined for classes that are not predicted.
        recall: f64[K], TP / (TP + FN); undefined for classes that are not in the ground truth.
        pixels: i64[K], pixels of each class in the ground truth.
        counts: i64[K,K], the confusion matrix; rows are the ground truth. For the task
            "multilabel", i64[K,2,2], one for each class.
        ignored: number of pixels that are ignored.
        boundary_iou: f64[K] of `fcn_jax.eval.boundary`; None if it was not asked for.
        ece: the expected calibration error of `fcn_jax.eval.calibration`; None if it was not asked
            for.
        labeled: number of pixels that are not ignored; None for the sum of `pixels`. For the task
            "multilabel", this and `ignored` are means over the classes, and pixels without any
            class count, too.
    """

    miou: float
    iou: np.ndarray
    pixel_accuracy: float
    class_accuracy: float
    fwiou: float
    micro_iou: float
    dice: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    pixels: np.ndarray
    counts: np.ndarray
    ignored: int = 0
    boundary_iou: np.ndarray | None = None
    ece: float | None = None
    labeled: int | None = None

    @property
    def num_labeled(self) -> int:
        """Number of pixels that are not ignored."""
        return int(self.pixels.sum()) if self.labeled is None else self.labeled

    @property
    def classes_scored(self) -> int:
        """Number of classes in the mean `miou`."""
        return int(np.count_nonzero(~np.isnan(self.iou)))

    def summary(self) -> str:
        """One line, such as "mIoU 0.5834 (9 of 11 classes), pixel accuracy 0.9062"."""
        if not self.num_labeled:
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
        if not self.num_labeled:
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
        """A table for the terminal: the scores of each class, then those of the set.

        "-" stands for an undefined score.
        """
        width = max(len("pixel accuracy"), *map(len, classes.names))
        total = max(self.num_labeled, 1)
        columns = {"IoU": self.iou, "Dice": self.dice}
        columns |= {"precision": self.precision, "recall": self.recall}
        if self.boundary_iou is not None:
            columns["boundary IoU"] = self.boundary_iou
        titles = [f"{title:>{max(len(title), 6)}}" for title in columns]
        lines = ["  ".join([f"{'class':<{width}}", *titles, " share of pixels"])]
        for label, name in enumerate(classes.names):
            figures = (
                f"{_figure(values[label]):>{len(title)}}"
                for title, values in zip(titles, columns.values(), strict=True)
            )
            share = f"{self.pixels[label] / total:16.2%}"
            lines.append("  ".join([f"{name:<{width}}", *figures, share]))
        fewer = self.classes_scored < len(classes)
        over = f" (over {self.classes_scored} of {len(classes)} classes)" if fewer else ""
        lines.append("")
        for title, value in self._of_the_set():
            lines.append(f"{title:<{width}}  {_figure(value)}{over if title == 'mIoU' else ''}")
        if self.ignored:
            lines += ["", f"{self.ignored_share:.2%} of all pixels are ignored"]
        return "\n".join(lines)

    def _of_the_set(self) -> list[tuple[str, float]]:
        scores = [
            ("mIoU", self.miou),
            ("pixel accuracy", self.pixel_accuracy),
            ("class accuracy", self.class_accuracy),
            ("fwIoU", self.fwiou),
            ("micro IoU", self.micro_iou),
            ("mean Dice", mean_of(self.dice)),
            ("mean precision", mean_of(self.precision)),
        ]
        if self.boundary_iou is not None:
            scores.append(("boundary mIoU", mean_of(self.boundary_iou)))
        return scores if self.ece is None else [*scores, ("ECE", self.ece)]

    def to_dict(self, classes: Classes) -> dict[str, Any]:
        """JSON-able, with None for undefined scores.

        Args:
            classes: names of the K classes.

        Returns:
            The scores of the set, with `mean_dice` and `mean_precision`; those of each class by
            class name; `pixels`, each class's pixels in the ground truth; `classes_scored`, the
            number of classes in the mean `miou`, of `classes`; `absent`, the names of classes
            without a pixel in the ground truth; `ignored_share`, the share of pixels that are
            ignored. `boundary_iou`, `mean_boundary_iou` and `ece` only if they were asked for.
        """

        def by_class(values: np.ndarray) -> dict[str, float | None]:
            return {n: _defined(value) for n, value in zip(classes.names, values, strict=True)}

        table = {
            "miou": _defined(self.miou),
            "pixel_accuracy": _defined(self.pixel_accuracy),
            "class_accuracy": _defined(self.class_accuracy),
            "fwiou": _defined(self.fwiou),
            "micro_iou": _defined(self.micro_iou),
            "mean_dice": _defined(mean_of(self.dice)),
            "mean_precision": _defined(mean_of(self.precision)),
            "classes_scored": self.classes_scored,
            "classes": len(classes),
            "absent": self._absent(classes),
            "ignored_share": _defined(self.ignored_share),
            "iou": by_class(self.iou),
            "dice": by_class(self.dice),
            "precision": by_class(self.precision),
            "recall": by_class(self.recall),
            "pixels": dict(zip(classes.names, self.pixels.tolist(), strict=True)),
        }
        if self.boundary_iou is not None:
            table["mean_boundary_iou"] = _defined(mean_of(self.boundary_iou))
            table["boundary_iou"] = by_class(self.boundary_iou)
        if self.ece is not None:
            table["ece"] = _defined(self.ece)
        return table

    @property
    def ignored_share(self) -> float:
        """Share of the set's pixels that are ignored; NaN for a set without pixels."""
        total = self.num_labeled + self.ignored
        return self.ignored / total if total else float("nan")

    def _absent(self, classes: Classes) -> list[str]:
        return [name for name, pixels in zip(classes.names, self.pixels, strict=True) if not pixels]


def _figure(value: float) -> str:
    return "     -" if np.isnan(value) else f"{value:6.4f}"


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def ratio(part: float, whole: float) -> float:
    """A fraction, NaN without a whole."""
    return float(part / whole) if whole else float("nan")


def mean_of(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; NaN without any."""
    finite = values[~np.isnan(values)]
    return float(finite.mean()) if finite.size else float("nan")
