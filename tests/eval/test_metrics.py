import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.api import Classes
from fcn_jax.eval.metrics import ConfusionMatrix


def naive(truths, predictions, num_classes):
    """Scores by their definitions, computed pixel by pixel over the set."""
    truth, prediction = (
        np.concatenate([t.ravel() for t in truths]),
        np.concatenate([p.ravel() for p in predictions]),
    )
    pairs = [(int(t), int(p)) for t, p in zip(truth, prediction, strict=True) if t != 255]
    iou, recall, weight, dice, precision = {}, {}, {}, {}, {}
    for k in range(num_classes):
        both = sum(t == k and p == k for t, p in pairs)
        either = sum(t == k or p == k for t, p in pairs)
        weight[k] = sum(t == k for t, _ in pairs)
        predicted = sum(p == k for _, p in pairs)
        if predicted:
            precision[k] = both / predicted
        if either:
            iou[k] = both / either
            dice[k] = 2 * both / (weight[k] + predicted)
        if weight[k]:
            recall[k] = both / weight[k]

    def mean(values):
        return np.mean(list(values)) if values else np.nan

    return {
        "miou": mean(iou.values()),
        "pixel_accuracy": mean([t == p for t, p in pairs]),
        "class_accuracy": mean(recall.values()),
        "fwiou": sum(weight[k] * iou[k] for k in iou) / len(pairs) if pairs else np.nan,
        "micro_iou": sum(t == p for t, p in pairs) / sum(1 + (t != p) for t, p in pairs)
        if pairs
        else np.nan,
    }, {"iou": iou, "dice": dice, "precision": precision, "recall": recall}


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 3),
    labels=st.integers(1, 5),
    ignored=st.sampled_from([0, 0.4, 1]),
)
def test_scores_equal_their_definitions(seed, images, labels, ignored):
    rng = np.random.default_rng(seed)
    # Classes above `labels` occur nowhere.
    truths = [
        np.where(rng.random((3, 4)) < ignored, 255, rng.integers(0, labels, (3, 4))).astype(
            np.uint8
        )
        for _ in range(images)
    ]
    predictions = [rng.integers(0, labels, (3, 4)).astype(np.uint8) for _ in range(images)]
    matrix = ConfusionMatrix(6)
    for truth, prediction in zip(truths, predictions, strict=True):
        matrix.add(truth, prediction)
    scores = matrix.scores()
    expected, by_class = naive(truths, predictions, 6)
    for name, value in expected.items():
        assert getattr(scores, name) == pytest.approx(value, nan_ok=True), name
    for name, values in by_class.items():
        for k in range(6):
            found = getattr(scores, name)[k]
            assert found == pytest.approx(values.get(k, np.nan), nan_ok=True), name


def test_rows_are_ground_truth_and_columns_prediction():
    matrix = ConfusionMatrix(3)
    matrix.add(np.asarray([[0, 0, 1, 255]], np.uint8), np.asarray([[2, 0, 1, 1]], np.uint8))
    np.testing.assert_array_equal(matrix.counts, [[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    scores = matrix.scores()
    # Class 2 is predicted, but is not in the ground truth: its IoU is 0, and the class accuracy
    # leaves it out.
    np.testing.assert_allclose(scores.iou, [0.5, 1, 0])
    assert scores.miou == pytest.approx(0.5)
    assert scores.class_accuracy == pytest.approx(0.75)
    np.testing.assert_array_equal(scores.pixels, [2, 1, 0])


def test_scores_do_not_depend_on_batches():
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


ABC = Classes(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


def scored(truth, prediction, num_classes=3):
    matrix = ConfusionMatrix(num_classes)
    matrix.add(np.asarray([truth], np.uint8), np.asarray([prediction], np.uint8))
    return matrix.scores()


def test_to_dict_is_none_for_absent_classes():
    assert scored([0, 0, 1, 255], [0, 0, 0, 0]).to_dict(ABC) == {
        "miou": pytest.approx(1 / 3),
        "pixel_accuracy": pytest.approx(2 / 3),
        "class_accuracy": 0.5,
        "fwiou": pytest.approx(4 / 9),
        "micro_iou": 0.5,
        "mean_dice": pytest.approx(0.4),
        "mean_precision": pytest.approx(2 / 3),
        "classes_scored": 2,
        "classes": 3,
        "absent": ["c"],
        "ignored_share": 0.25,
        "iou": {"a": pytest.approx(2 / 3), "b": 0.0, "c": None},
        "dice": {"a": pytest.approx(0.8), "b": 0.0, "c": None},
        "precision": {"a": pytest.approx(2 / 3), "b": None, "c": None},
        "recall": {"a": 1.0, "b": 0.0, "c": None},
        "pixels": {"a": 2, "b": 1, "c": 0},
    }


def test_extra_scores_are_in_the_dict_and_the_table():
    matrix = ConfusionMatrix(3)
    matrix.add(np.uint8([0, 1]), np.uint8([0, 1]))
    scores = matrix.scores(boundary_iou=np.array([0.25, 0.5, np.nan]), ece=0.125)
    table = scores.to_dict(ABC)
    assert table["boundary_iou"] == {"a": 0.25, "b": 0.5, "c": None}
    assert (table["mean_boundary_iou"], table["ece"]) == (0.375, 0.125)
    lines = [line.split() for line in scores.table(ABC).splitlines()]
    assert ["a", "1.0000", "1.0000", "1.0000", "1.0000", "0.2500", "50.00%"] in lines
    assert ["c", "-", "-", "-", "-", "-", "0.00%"] in lines
    assert ["boundary", "mIoU", "0.3750"] in lines
    assert ["ECE", "0.1250"] in lines
    assert "ECE" not in matrix.scores().table(ABC)


def test_columns_are_aligned():
    lines = scored([0, 0, 1, 255], [0, 0, 0, 0]).table(ABC).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1


def test_scores_of_an_ignored_set_are_none_with_a_note():
    scores = scored([255, 255], [0, 1])
    table = scores.to_dict(ABC)
    assert [table[name] for name in ("miou", "pixel_accuracy", "class_accuracy", "fwiou")] == [
        None
    ] * 4
    assert table["iou"] == {"a": None, "b": None, "c": None}
    assert (table["classes_scored"], table["classes"], table["ignored_share"]) == (0, 3, 1.0)
    assert scores.summary() == "mIoU - (no labeled pixel)"
    assert scores.notes(ABC) == (
        "no pixel has a class: all 2 are ignored (label 255), so there are no scores",
    )
    assert ConfusionMatrix(3).scores().to_dict(ABC)["ignored_share"] is None, "no pixel at all"
    assert ConfusionMatrix(3).scores().notes(ABC) == ("there is no pixel, so there are no scores",)


def test_notes_mention_few_labeled_pixels():
    assert scored([0, 1, 2, 255, 255, 255, 255], [0] * 7).notes(ABC) == (
        "57.1% of the pixels are ignored: the scores cover the others",
    )


def test_notes_mention_a_mean_over_one_class():
    scores = scored([1, 1, 255, 255], [1, 1, 0, 2])
    assert scores.miou == 1
    assert scores.summary() == "mIoU 1.0000 (1 of 3 classes), pixel accuracy 1.0000"
    one, absent = scores.notes(ABC)
    assert one.startswith("the scores cover one class of 3, 'b'")
    assert absent == "2 of 3 classes have no pixel in the ground truth: a, c"


def test_notes_mention_a_single_class():
    scores = scored([0, 0], [0, 0], 1)
    assert scores.summary() == "mIoU 1.0000 (1 class), pixel accuracy 1.0000"
    assert scores.notes(Classes(("a",), ((0, 0, 0),)))[0].startswith(
        "the scores cover one class of 1, 'a'"
    )


def test_notes_name_absent_classes_and_those_predicted():
    scores = scored([0, 0, 0, 0], [0, 0, 0, 2])
    assert scores.summary() == "mIoU 0.3750 (2 of 3 classes), pixel accuracy 0.7500"
    assert scores.notes(ABC) == (
        "2 of 3 classes have no pixel in the ground truth: b, c; predicted anyway, "
        "counted as 0 in mIoU: c",
    )


def test_scores_of_all_classes_have_no_notes():
    scores = scored([0, 1, 2, 2], [0, 1, 2, 1])
    assert scores.summary() == "mIoU 0.6667 (3 classes), pixel accuracy 0.7500"
    assert scores.notes(ABC) == ()
