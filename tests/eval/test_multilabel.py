"""Scores and pictures of masks with any number of classes per pixel."""

import json

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.multilabel import read_multilabel_mask
from fcn_jax.errors import ConfigError
from fcn_jax.eval import draw
from fcn_jax.eval.meter import Meter
from fcn_jax.eval.metrics import ConfusionMatrix
from fcn_jax.eval.multilabel import MultilabelCounts
from fcn_jax.eval.stored import ImageScore
from fcn_jax.plugins.api import Classes, Example

CLASSES = Classes(("a", "b", "c"), ((9, 0, 0), (0, 9, 0), (0, 0, 9)))


def pair(seed=0, classes=3):
    rng = np.random.default_rng(seed)
    truth = np.array([0, 1, 255], np.uint8)[rng.integers(0, 3, (7, 9, classes))]
    return truth, rng.integers(0, 2, truth.shape).astype(np.uint8)


def counted(*pairs):
    counts = MultilabelCounts(pairs[0][0].shape[2])
    for truth, prediction in pairs:
        counts.add(truth, prediction)
    return counts.scores()


def test_scores_of_a_class_are_those_of_its_binary_mask():
    pairs = [pair(0), pair(1)]
    scores = counted(*pairs)
    right = labeled = 0
    for k in range(3):
        matrix = ConfusionMatrix(2)
        for truth, prediction in pairs:
            matrix.add(truth[..., k], prediction[..., k])
        alone = matrix.scores()
        for name in ("iou", "dice", "precision", "recall"):
            assert getattr(scores, name)[k] == pytest.approx(getattr(alone, name)[1])
        assert scores.pixels[k] == alone.pixels[1]
        np.testing.assert_array_equal(scores.counts[k], alone.counts)
        right, labeled = right + np.trace(alone.counts), labeled + alone.counts.sum()
    assert scores.pixel_accuracy == pytest.approx(right / labeled)
    assert scores.miou == pytest.approx(scores.iou.mean())
    valid = np.mean([truth != 255 for truth, _ in pairs])
    assert scores.ignored_share == pytest.approx(1 - valid, abs=0.02)
    json.dumps(scores.to_dict(CLASSES), allow_nan=False)
    assert "share of pixels" in scores.table(CLASSES)


def test_matches_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    truth, prediction = pair(classes=4)
    truth[truth == 255] = 0
    flat = truth.reshape(-1, 4), prediction.reshape(-1, 4)
    scores = counted((truth, prediction))
    np.testing.assert_array_equal(scores.counts, metrics.multilabel_confusion_matrix(*flat))
    np.testing.assert_allclose(scores.iou, metrics.jaccard_score(*flat, average=None))
    assert scores.micro_iou == pytest.approx(metrics.jaccard_score(*flat, average="micro"))


def test_a_class_that_is_neither_there_nor_predicted_is_left_out():
    truth, prediction = np.zeros((2, 3, 2), np.uint8), np.zeros((2, 3, 2), np.uint8)
    truth[0, :, 0] = prediction[0, :2, 0] = 1
    scores = counted((truth, prediction))
    assert scores.miou == pytest.approx(2 / 3)
    assert np.isnan(scores.iou[1])
    assert scores.pixel_accuracy == pytest.approx(11 / 12)
    nothing = counted((np.full((2, 3, 2), 255, np.uint8), prediction))
    assert nothing.summary() == "mIoU - (no labeled pixel)"


def test_meter_counts_masks_of_the_task():
    truth, prediction = pair()
    meter = Meter(3, ["miou"], "multilabel")
    meter.add(truth, prediction)
    assert meter.scores().miou == counted((truth, prediction)).miou
    with pytest.raises(ConfigError, match="'multilabel' has no ece, boundary_iou, which needs one"):
        Meter(3, ["ece", "boundary_iou"], "multilabel")
    score = ImageScore.of(Example("x", np.zeros((7, 9, 3), np.uint8), truth), prediction)
    assert score.miou == meter.scores().miou


def test_pictures_show_the_last_class_of_a_pixel():
    mask = np.zeros((1, 4, 3), np.uint8)
    mask[0, 0], mask[0, 1], mask[0, 2] = [1, 0, 1], [1, 0, 0], [255, 255, 255]
    assert draw.one_label(mask).tolist() == [[2, 0, 255, draw.NO_CLASS]]
    image = np.full((1, 4, 3), 100, np.uint8)
    assert draw.overlay(image, mask[:, 3:].repeat(4, 1), CLASSES).tolist() == image.tolist()
    assert draw.panel(image, mask, mask, CLASSES).shape[1] == 12


def test_a_mask_is_written_as_pages_that_the_dataset_reads(tmp_path):
    _, mask = pair(classes=5)
    path = tmp_path / "out" / "m.tif"
    draw.write_mask(path, mask, CLASSES)
    np.testing.assert_array_equal(read_multilabel_mask(path, 5), mask)
    assert draw.is_result(path)
    Image.fromarray(mask[..., 0]).save(tmp_path / "own.tif")
    assert not draw.is_result(tmp_path / "own.tif")
