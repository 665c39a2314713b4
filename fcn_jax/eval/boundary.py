"""Boundary IoU: the intersection over union of the classes' boundary regions.

After Cheng et al. 2021, "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation". The
boundary region of a class is the set of its pixels that are at most d pixels away from a pixel of
another class or from the image's border, where d is 2 % of the image's diagonal and the distance is
the larger one of rows and columns. The reference algorithm (bowenc0221/boundary-iou-api,
`mask_to_boundary`) finds it by d erosions of each class with a 3x3 square. Here one erosion and one
dilation of the labels find the regions of all classes, with the same pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

from fcn_jax.plugins.api import IGNORE_INDEX

DILATION_RATIO = 0.02
"""Width of a boundary region as a share of the image's diagonal, as in the paper."""


class BoundaryIoU:
    """Pixels of boundary regions, summed over images.

    The regions of an image are those of its valid pixels: ignored pixels belong to no class, in the
    ground truth and in the prediction. So a prediction that goes on below an ignored outline, as
    the outlines of VOC's objects are, is right.
    """

    def __init__(self, num_classes: int) -> None:
        """Start with zeros."""
        self._intersection = np.zeros(num_classes, np.int64)
        self._sizes = np.zeros(num_classes, np.int64)

    def add(self, ground_truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count an image.

        Args:
            ground_truth: u8[H,W], labels 0 to K-1, or 255 for pixels that are ignored.
            prediction: u8[H,W], labels 0 to K-1.
        """
        valid = ground_truth != IGNORE_INDEX
        if not valid.any():
            return
        prediction = np.where(valid, prediction, IGNORE_INDEX).astype(np.uint8)
        true, predicted = boundary(ground_truth) & valid, boundary(prediction) & valid
        number = len(self._sizes)
        self._sizes += np.bincount(ground_truth[true], minlength=number)
        self._sizes += np.bincount(prediction[predicted], minlength=number)
        both = true & predicted & (ground_truth == prediction)
        self._intersection += np.bincount(ground_truth[both], minlength=number)

    def counts(self) -> list[np.ndarray]:
        """All counts, i64[K]."""
        return [self._intersection, self._sizes]

    def scores(self) -> np.ndarray:
        """f64[K]; NaN for a class that occurs in neither ground truth nor prediction."""
        with np.errstate(invalid="ignore"):
            return self._intersection / (self._sizes - self._intersection)


def boundary(labels: np.ndarray) -> np.ndarray:
    """Find the boundary regions of all labels but 255.

    Args:
        labels: u8[H,W].

    Returns:
        bool[H,W]: whether a pixel lies in the region of its own label. Undefined where that is 255.
    """
    height, width = labels.shape
    distance = max(1, round(DILATION_RATIO * float(np.hypot(height, width))))
    # Within the distance all labels are equal: so their minimum is their maximum. OpenCV leaves out
    # pixels beyond the image, which the added border of another label stands for.
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    padded = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=IGNORE_INDEX)
    differs = cv2.erode(padded, square) != cv2.dilate(padded, square)
    return np.asarray(differs[1:-1, 1:-1])
