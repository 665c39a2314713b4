"""Write scores by scikit-learn and torchmetrics for tests without them.

`python -m tests.helpers.reference_scores > tests/eval/reference_scores.json`, with scikit-learn
1.9.1 and torchmetrics 1.9.0. Labels and probabilities are part of the file.
"""

import json
import warnings
from typing import Any

import numpy as np

CASES = (("all classes", 5, 0.0), ("ignored pixels", 4, 0.3), ("absent classes", 6, 0.2))
"""Name, number of classes, share of ignored pixels. The last case lacks classes 1 and 4."""


def main() -> None:
    """Print the file."""
    cases = [make(*case, seed=seed) for seed, case in enumerate(CASES)]
    print(json.dumps({"cases": cases}, indent=None))


def make(name: str, num_classes: int, ignored: float, *, seed: int) -> dict[str, Any]:
    """Draw two images of 9x11 pixels and score them."""
    rng = np.random.default_rng(seed)
    shape = (2, 9, 11)
    truth = rng.integers(0, num_classes, shape)
    logits = rng.standard_normal((*shape, num_classes)) + 2 * np.eye(num_classes)[truth]
    if name == "absent classes":
        logits[..., [1, 4]] = -30  # class 1 is in the ground truth, but never predicted
        truth[truth == 4] = 0
    truth[rng.random(shape) < ignored] = 255
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    # In float32, as the product has them; the sums to 1 are then those of float32.
    probabilities = probabilities.astype(np.float32)
    return {
        "name": name,
        "truth": truth.tolist(),
        "probabilities": probabilities.tolist(),
        "sklearn": sklearn_scores(truth, probabilities.argmax(-1), num_classes),
        "torchmetrics": torchmetrics_scores(truth, probabilities, num_classes),
    }


def sklearn_scores(truth: Any, prediction: Any, num_classes: int) -> dict[str, Any]:
    """Scores of valid pixels; None for undefined ones, which scikit-learn leaves out of means."""
    from sklearn import metrics

    valid = truth != 255
    pair = truth[valid], prediction[valid]
    labels = list(range(num_classes))
    options = {"labels": labels, "average": None, "zero_division": np.nan}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_class = {
            "dice": metrics.f1_score(*pair, **options),
            "precision": metrics.precision_score(*pair, **options),
            "recall": metrics.recall_score(*pair, **options),
        }
        present = sorted(set(pair[0]) | set(pair[1]))
        jaccard = metrics.jaccard_score(*pair, labels=present, average=None)
        iou = np.full(num_classes, np.nan)
        iou[present] = jaccard
        return {
            "counts": metrics.confusion_matrix(*pair, labels=labels).tolist(),
            "iou": defined(iou),
            **{name: defined(values) for name, values in by_class.items()},
            "miou": float(metrics.jaccard_score(*pair, labels=present, average="macro")),
            "fwiou": float(metrics.jaccard_score(*pair, labels=present, average="weighted")),
            "micro_iou": float(metrics.jaccard_score(*pair, labels=present, average="micro")),
            "pixel_accuracy": float(metrics.accuracy_score(*pair)),
            "class_accuracy": float(metrics.balanced_accuracy_score(*pair)),
        }


def torchmetrics_scores(truth: Any, probabilities: Any, num_classes: int) -> dict[str, Any]:
    """Scores that torchmetrics defines in the same way."""
    import torch

    from fcn_jax.pytorch.reference import import_torchvision

    import_torchvision()  # torchmetrics imports it, which fails with some releases of torch
    from torchmetrics import classification

    target = torch.as_tensor(truth).flatten()
    scores = torch.as_tensor(probabilities).reshape(-1, num_classes)
    options = {"num_classes": num_classes, "ignore_index": 255}

    def value(metric: Any) -> float:
        return float(metric(scores, target))

    return {
        "miou": value(classification.MulticlassJaccardIndex(average="macro", **options)),
        "micro_iou": value(classification.MulticlassJaccardIndex(average="micro", **options)),
        "fwiou": value(classification.MulticlassJaccardIndex(average="weighted", **options)),
        "pixel_accuracy": value(classification.MulticlassAccuracy(average="micro", **options)),
        "ece": value(classification.MulticlassCalibrationError(n_bins=15, norm="l1", **options)),
    }


def defined(values: Any) -> list[float | None]:
    """Numbers, with None for NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


if __name__ == "__main__":
    main()
