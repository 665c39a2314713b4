"""Counts of masks with any number of classes per pixel (the task "multilabel")."""

from __future__ import annotations

import numpy as np

from fcn_jax.eval.metrics import Scores, mean_of, ratio
from fcn_jax.plugins.api import IGNORE_INDEX


class MultilabelCounts:
    """Counts of pixels that have a class, or do not, for each class alone.

    Attributes:
        counts: i64[K,2,2], for each class, rows are the ground truth (without the class, with it),
            columns the prediction; as scikit-learn's `multilabel_confusion_matrix`.
        ignored: i64[], number of pixels whose ground truth is `IGNORE_INDEX`, summed over the
            classes.
    """

    def __init__(self, num_classes: int) -> None:
        """Start with zeros."""
        self.counts = np.zeros((num_classes, 2, 2), np.int64)
        self.ignored = np.zeros((), np.int64)

    def add(self, ground_truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count an image.

        Args:
            ground_truth: u8[H,W,K] of 0, 1 and 255, which is ignored.
            prediction: u8[H,W,K] of 0 and 1.
        """
        valid = ground_truth != IGNORE_INDEX
        self.ignored += valid.size - int(np.count_nonzero(valid))
        for truth in (0, 1):
            for predicted in (0, 1):
                found = (ground_truth == truth) & (prediction == predicted)
                self.counts[:, truth, predicted] += found.sum((0, 1))

    def scores(self) -> Scores:
        """The scores so far.

        Of each class, as for others; the mean IoU is over the classes that occur in the ground
        truth or the prediction. The pixel accuracy is the share of right decisions, over all pixels
        and classes.
        """
        counts = self.counts.copy()
        negatives, misses = counts[:, 0, 0], counts[:, 1, 0]
        false_alarms, hits = counts[:, 0, 1], counts[:, 1, 1].astype(np.float64)
        truth = misses + counts[:, 1, 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = hits / (hits + misses + false_alarms)
            dice = 2 * hits / (2 * hits + misses + false_alarms)
            precision, recall = hits / (hits + false_alarms), hits / truth
        present, total = truth > 0, counts.sum()
        return Scores(
            miou=mean_of(iou),
            iou=iou,
            pixel_accuracy=ratio(negatives.sum() + hits.sum(), total),
            class_accuracy=mean_of(recall),
            fwiou=ratio((truth[present] * iou[present]).sum(), truth.sum()),
            micro_iou=ratio(hits.sum(), (hits + misses + false_alarms).sum()),
            dice=dice,
            precision=precision,
            recall=recall,
            pixels=truth,
            counts=counts,
            ignored=round(int(self.ignored) / len(counts)),
            labeled=round(total / len(counts)),
        )
