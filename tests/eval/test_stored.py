"""Evaluations that a run keeps."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fcn_jax.api import IGNORE_INDEX, Classes, Example
from fcn_jax.data.images.picture import as_rgb
from fcn_jax.errors import WriteError
from fcn_jax.eval import stored
from fcn_jax.eval.evaluation import Evaluation
from fcn_jax.eval.metrics import ConfusionMatrix
from fcn_jax.eval.protocols import make

CLASSES = Classes(("background", "car", "tree"), ((0, 0, 0), (250, 10, 20), (30, 200, 40)))


def example(number, truth, *, channels=3, dtype=np.uint8):
    image = np.full((*truth.shape, channels), number, dtype)
    return Example(f"street/{number}", image, truth)


def evaluation(images, directory=None):
    matrix = ConfusionMatrix(3)
    matrix.add(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    return Evaluation(directory, "camvid", "val", images, CLASSES, matrix.scores(), make("native"))


def with_right_columns(count):
    """An image of class 1, and a prediction with this number of right columns out of 10."""
    prediction = np.full((8, 10), 2, np.uint8)
    prediction[:, :count] = 1
    return np.ones((8, 10), np.uint8), prediction


labels = st.integers(0, 2) | st.just(IGNORE_INDEX)


@given(arrays(np.uint8, (3, 4), elements=labels), arrays(np.uint8, (3, 4), elements=labels))
def test_scores_of_an_image_are_those_of_its_own_confusion_matrix(truth, prediction):
    prediction[prediction == IGNORE_INDEX] = 0
    score = stored.ImageScore.of(example(1, truth), prediction)
    valid = truth != IGNORE_INDEX
    ious = [
        ((truth == k) & (prediction == k) & valid).sum() / union
        for k in range(3)
        if (union := (((truth == k) | (prediction == k)) & valid).sum())
    ]
    assert score.pixels == valid.sum()
    if ious:
        assert score.miou == pytest.approx(np.mean(ious))
        assert score.pixel_accuracy == pytest.approx((truth == prediction)[valid].mean())
    else:
        assert np.isnan(score.miou)


def test_keeps_pictures_of_the_best_and_the_worst(tmp_path):
    images = stored.ImageScores(keep=2)
    for count in (3, 9, 0, 7, 5, 9, 1):
        images.add(example(count, with_right_columns(count)[0]), with_right_columns(count)[1])
    images.add(example(99, np.full((2, 2), IGNORE_INDEX, np.uint8)), np.zeros((2, 2), np.uint8))
    images.store(tmp_path / "val", evaluation(8))
    table = json.loads((tmp_path / "val" / "scores.json").read_text())
    pictures = table["pictures"]
    assert [one["id"] for one in pictures["best"]] == ["street/9", "street/9"]
    assert [one["id"] for one in pictures["worst"]] == ["street/0", "street/1"]
    assert pictures["worst"][1]["pixel_accuracy"] == pytest.approx(0.1)
    assert len(table["per_image"]) == 8
    assert table["per_image"][7] == {
        **{"id": "street/99", "miou": None, "pixel_accuracy": None, "pixels": 0}
    }
    image, truth, prediction = (tmp_path / "val" / name for name in pictures["worst"][1]["files"])
    assert np.abs(np.asarray(Image.open(image)).astype(int) - 1).max() <= 2
    np.testing.assert_array_equal(np.asarray(Image.open(truth)), with_right_columns(1)[0])
    opened = Image.open(prediction)
    np.testing.assert_array_equal(np.asarray(opened), with_right_columns(1)[1])
    assert tuple(opened.convert("RGB").getpixel((9, 0))) == CLASSES.palette[2]
    assert opened.convert("RGBA").getpixel((0, 0))[3] == 255


def test_few_images_are_not_shown_twice(tmp_path):
    images = stored.ImageScores(keep=4)
    for count in (3, 9):
        images.add(example(count, with_right_columns(count)[0]), with_right_columns(count)[1])
    images.store(tmp_path, evaluation(2))
    pictures = json.loads((tmp_path / "scores.json").read_text())["pictures"]
    assert [one["id"] for one in pictures["best"]] == ["street/9", "street/3"]
    assert pictures["worst"] == []


def test_stored_pictures_replace_earlier_ones_and_are_small(tmp_path):
    def store(number, shape, **options):
        images = stored.ImageScores()
        truth = np.zeros(shape, np.uint8)
        for extra in range(number):
            images.add(example(extra, truth, **options), truth)
        images.store(tmp_path, evaluation(number))

    store(3, (4, 6))
    assert len(list(tmp_path.glob("*.jpg"))) == 3
    store(1, (40, 1280))
    assert len(list(tmp_path.glob("*.jpg"))) == 1
    assert Image.open(tmp_path / "0.jpg").size == (640, 20)
    assert Image.open(tmp_path / "0_truth.png").size == (640, 20)
    mask = Image.open(tmp_path / "0_truth.png").convert("RGBA")
    assert mask.getpixel((0, 0)) == (0, 0, 0, 0), "the black background is transparent"


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_images_of_other_channels_are_shown(tmp_path, channels):
    images, truth = stored.ImageScores(), np.zeros((4, 6), np.uint8)
    image = np.linspace(0, 1, 4 * 6 * channels, dtype=np.float32).reshape(4, 6, channels)
    images.add(Example("a", image, truth), truth)
    images.store(tmp_path, evaluation(1))
    shown = np.asarray(Image.open(tmp_path / "0.jpg")).astype(int)
    assert np.abs(shown - as_rgb(image)).max() < 40, "JPEG"


def run_with_checkpoint(folder):
    directory = folder / "checkpoints" / "7"
    directory.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return directory


def one_image():
    images = stored.ImageScores()
    images.add(example(1, np.zeros((2, 2), np.uint8)), np.zeros((2, 2), np.uint8))
    return images


def test_evaluations_of_a_run_are_kept_by_split_and_protocol(tmp_path):
    directory = run_with_checkpoint(tmp_path)
    assert stored.keep(evaluation(1, directory), one_image()) is None
    ((folder, table),) = stored.read(tmp_path)
    assert folder == tmp_path / "evaluations" / "camvid-val-native"
    assert table["step"] == 7
    assert table["confusion"][0][0] == 4
    assert table["class_names"] == list(CLASSES.names)
    (folder / "scores.json").write_text('{"time": ')
    assert stored.read(tmp_path) == []


def test_newest_evaluation_is_read_last(tmp_path):
    for name in ("b", "a", "c"):
        one_image().store(tmp_path / "evaluations" / name, evaluation(1))
    assert [folder.name for folder, _ in stored.read(tmp_path)] == ["b", "a", "c"]


def test_evaluation_of_the_latest_step_is_read_last_whatever_the_clock_said(tmp_path, monkeypatch):
    steps = (7, 100, None, 20)
    for number, step in enumerate(steps):
        monkeypatch.setattr(stored.time, "time", lambda now=-number: 1e9 + now)  # it runs backward
        one_image().store(tmp_path / "evaluations" / f"{number}", evaluation(1))
        path = tmp_path / "evaluations" / f"{number}" / "scores.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"step": step}))
    assert [table["step"] for _, table in stored.read(tmp_path)] == [None, 7, 20, 100]


def test_models_outside_of_runs_keep_nothing(tmp_path):
    directory = tmp_path / "converted"
    directory.mkdir()
    for where in (directory, None):
        assert stored.keep(evaluation(1, where), one_image()) is None
    assert list(tmp_path.rglob("scores.json")) == []


def test_run_that_cannot_be_written_is_a_note(tmp_path):
    directory = run_with_checkpoint(tmp_path)
    (tmp_path / "evaluations").write_text("a file")
    note = stored.keep(evaluation(1, directory), one_image())
    assert note.startswith("the scores are not kept for `fcn-jax report`: ")
    with pytest.raises(WriteError):
        one_image().store(tmp_path / "evaluations" / "x", evaluation(1))
