"""Expected calibration error: how far the model's confidence is from its accuracy."""

from __future__ import annotations

import numpy as np

from fcn_jax.plugins.api import IGNORE_INDEX

BINS = 15
"""Number of bins of equal width, as in the paper."""

_UNITS = 2**24
"""Confidences are summed in units of 1 / _UNITS, as whole numbers: a sum of floats would depend on
the order of the images.
"""


class Calibration:
    """Pixels by the confidence of their prediction, after Guo et al. 2017.

    The confidence is the probability of the predicted class. Bin b of B = 15 holds confidences in
    (b/B, (b+1)/B]. The error is the mean over bins of |accuracy - mean confidence|, weighted by
    their pixels. Ignored pixels do not count.
    """

    def __init__(self) -> None:
        """Start with zeros."""
        self._pixels = np.zeros(BINS, np.int64)
        self._right = np.zeros(BINS, np.int64)
        self._confidence = np.zeros(BINS, np.int64)

    def add(self, ground_truth: np.ndarray, prediction: np.ndarray, confidence: np.ndarray) -> None:
        """Count an image.

        Args:
            ground_truth: u8[...], labels, or 255 for pixels that are ignored.
            prediction: u8[...], labels.
            confidence: f32[...], above 0, at most 1.
        """
        valid = ground_truth != IGNORE_INDEX
        values = confidence[valid].astype(np.float64)  # the product with BINS is exact
        bins = np.clip(np.ceil(values * BINS).astype(np.int64) - 1, 0, BINS - 1)
        right = ground_truth[valid] == prediction[valid]
        self._pixels += np.bincount(bins, minlength=BINS)
        self._right += np.bincount(bins[right], minlength=BINS)
        sums = np.bincount(bins, weights=np.rint(values * _UNITS), minlength=BINS)
        self._confidence += sums.astype(np.int64)

    def counts(self) -> list[np.ndarray]:
        """All counts, i64[BINS]."""
        return [self._pixels, self._right, self._confidence]

    def score(self) -> float:
        """The expected calibration error, 0 to 1; NaN if no pixel counts."""
        total = self._pixels.sum()
        gaps = np.abs(self._right - self._confidence / _UNITS)
        return float(gaps.sum() / total) if total else float("nan")
