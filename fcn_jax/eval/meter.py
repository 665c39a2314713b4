"""All counts from which the scores of a set of images follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcn_jax.errors import ConfigError, did_you_mean
from fcn_jax.eval.boundary import BoundaryIoU
from fcn_jax.eval.calibration import Calibration
from fcn_jax.eval.metrics import ConfusionMatrix, Scores
from fcn_jax.eval.multilabel import MultilabelCounts
from fcn_jax.plugins.api import Task

EXTRA_METRICS = ("boundary_iou", "ece")
"""Metrics that take more than a confusion matrix: computed only if they are asked for."""

METRICS = (
    "miou",
    "iou",
    "pixel_accuracy",
    "class_accuracy",
    "fwiou",
    "micro_iou",
    "dice",
    "precision",
    "recall",
    *EXTRA_METRICS,
)
"""All metrics. Those that are not extra are always reported."""


def check_metrics(names: Sequence[str]) -> None:
    """Raise `ConfigError` for names that are not in `METRICS`."""
    if unknown := [name for name in names if name not in METRICS]:
        problems = (f"no metric '{name}'. {did_you_mean(name, METRICS)}" for name in unknown)
        raise ConfigError(" ".join(problems))


class Meter:
    """Counts of a set of images; they do not depend on the order of the images.

    Attributes:
        needs_confidence: whether a metric needs the confidence of predictions.
    """

    def __init__(
        self, num_classes: int, metrics: Sequence[str] = (), task: Task = "multiclass"
    ) -> None:
        """Start with zeros.

        Args:
            num_classes: number of classes K, at least 1.
            metrics: names in `METRICS`.
            task: the model's.

        Raises:
            ConfigError: a name is unknown, or the task does not have the metric.
        """
        check_metrics(metrics)
        if task == "multilabel" and (extra := [m for m in metrics if m in EXTRA_METRICS]):
            raise ConfigError(
                f"the task 'multilabel' has no {', '.join(extra)}, which needs one class per pixel"
            )
        self._matrix: ConfusionMatrix | MultilabelCounts = (
            MultilabelCounts(num_classes) if task == "multilabel" else ConfusionMatrix(num_classes)
        )
        self._boundary = BoundaryIoU(num_classes) if "boundary_iou" in metrics else None
        self._calibration = Calibration() if "ece" in metrics else None
        self.needs_confidence = self._calibration is not None

    def add(
        self,
        ground_truth: np.ndarray,
        prediction: np.ndarray,
        confidence: np.ndarray | None = None,
    ) -> None:
        """Count an image.

        Args:
            ground_truth: u8[H,W], labels 0 to K-1, or 255 for pixels that are ignored; for the
                task "multilabel", u8[H,W,K] of 0, 1 and 255.
            prediction: u8[H,W], labels 0 to K-1; or u8[H,W,K] of 0 and 1.
            confidence: f32[H,W], the probability of the predicted class; required for "ece".
        """
        self._matrix.add(ground_truth, prediction)
        if self._boundary is not None:
            self._boundary.add(ground_truth, prediction)
        if self._calibration is not None:
            if confidence is None:
                raise ValueError("the metric 'ece' needs the confidence of the prediction")
            self._calibration.add(ground_truth, prediction, confidence)

    def counts(self) -> list[np.ndarray]:
        """All counts, i64[...], which another meter's may be added to."""
        parts: list[np.ndarray] = [self._matrix.counts, self._matrix.ignored]
        parts += self._boundary.counts() if self._boundary else []
        return parts + (self._calibration.counts() if self._calibration else [])

    def scores(self) -> Scores:
        """The scores so far."""
        if isinstance(self._matrix, MultilabelCounts):
            return self._matrix.scores()
        return self._matrix.scores(
            boundary_iou=None if self._boundary is None else self._boundary.scores(),
            ece=None if self._calibration is None else self._calibration.score(),
        )
