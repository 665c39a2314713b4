import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.api import Classes
from fcn_jax.infer.metrics import ConfusionMatrix


def naive(truths, predictions, num_classes):
    """Scores by their definitions, pixel by pixel over the whole set."""
    truth, prediction = np.concatenate([t.ravel() for t in truths]), np.concatenate([p.ravel() for p in predictions])
    pairs = [(int(t), int(p)) for t, p in zip(truth, prediction, strict=True) if t != 255]
    iou, recall, weight = {}, {}, {}
    for k in range(num_classes):
        both = sum(t == k and p == k for t, p in pairs)
        either = sum(t == k or p == k for t, p in pairs)
        weight[k] = sum(t == k for t, _ in pairs)
        if either:
            iou[k] = both / either
        if weight[k]:
            recall[k] = both / weight[k]

    def mean(values):
        return np.mean(list(values)) if values else np.nan

    return {
        "miou": mean(iou.values()),
        "pixel_accuracy": mean([t == p for t, p in pairs]),
        "class_accuracy": mean(recall.values()),
        "fwiou": sum(weight[k] * iou[k] for k in iou) / len(pairs) if pairs else np.nan,
    }, iou


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 3), labels=st.integers(1, 5), ignored=st.sampled_from([0, 0.4, 1]))
def test_scores_equal_their_definitions(seed, images, labels, ignored):
    rng = np.random.default_rng(seed)
    # Classes above `labels` occur nowhere.
    truths = [
        np.where(rng.random((3, 4)) < ignored, 255, rng.integers(0, labels, (3, 4))).astype(np.uint8) for _ in range(images)
    ]
    predictions = [rng.integers(0, labels, (3, 4)).astype(np.uint8) for _ in range(images)]
    matrix = ConfusionMatrix(6)
    for truth, prediction in zip(truths, predictions, strict=True):
        matrix.add(truth, prediction)
    scores = matrix.scores()
    expected, iou = naive(truths, predictions, 6)
    for name, value in expected.items():
        assert getattr(scores, name) == pytest.approx(value, nan_ok=True), name
    for k in range(6):
        assert scores.iou[k] == pytest.approx(iou.get(k, np.nan), nan_ok=True)


def test_rows_are_the_truth_and_columns_the_prediction():
    matrix = ConfusionMatrix(3)
    matrix.add(np.asarray([[0, 0, 1, 255]], np.uint8), np.asarray([[2, 0, 1, 1]], np.uint8))
    np.testing.assert_array_equal(matrix.counts, [[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    scores = matrix.scores()
    # Class 2 is predicted but never true: an intersection of nothing, and no share of the class accuracy.
    np.testing.assert_allclose(scores.iou, [0.5, 1, 0])
    assert scores.miou == pytest.approx(0.5)
    assert scores.class_accuracy == pytest.approx(0.75)
    np.testing.assert_array_equal(scores.pixels, [2, 1, 0])


def test_scores_do_not_depend_on_how_the_set_is_cut():
    rng = np.random.default_rng(0)
    truth, prediction = (rng.integers(0, 4, (8, 5, 5)).astype(np.uint8) for _ in range(2))
    whole, parts = ConfusionMatrix(4), ConfusionMatrix(4)
    whole.add(truth, prediction)
    for t, p in zip(truth, prediction, strict=True):
        parts.add(t, p)
    np.testing.assert_array_equal(whole.counts, parts.counts)


def test_large_counts_and_many_classes_do_not_overflow():
    matrix = ConfusionMatrix(200)
    for _ in range(3):
        matrix.add(np.full((500, 500), 199, np.uint8), np.full((500, 500), 198, np.uint8))
    assert matrix.counts[199, 198] == 750_000


def test_a_class_that_does_not_occur_is_none_in_json():
    matrix = ConfusionMatrix(2)
    matrix.add(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    table = matrix.scores().to_dict(Classes(("a", "b"), ((0, 0, 0), (1, 1, 1))))
    assert table == {"miou": 1.0, "pixel_accuracy": 1.0, "class_accuracy": 1.0, "fwiou": 1.0, "iou": {"a": 1.0, "b": None}}
