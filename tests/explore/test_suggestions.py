"""Suggested settings fit the data, and can be pasted."""

import shlex

import pytest

from fcn_jax.config import parse
from fcn_jax.explore.check import check
from fcn_jax.explore.opening import settings
from fcn_jax.recipes import override
from tests.helpers.folders import noise, stripes


def suggested(folder, *changes):
    report = check(folder.config(*changes))
    for suggestion in report.suggestions:
        option, setting = shlex.split(suggestion.option)
        assert option == "--set"
        parse(override({}, [setting]))
    return {suggestion.key: suggestion for suggestion in report.suggestions}


def test_nothing_is_suggested_for_settings_that_fit(make):
    assert suggested(make().fill()) == {}


@pytest.mark.parametrize(
    ("classes", "values", "key", "value"),
    [
        ("bg\nroad\n", (0, 255), "data.label_map", {"255": 1}),
        ("bg\nroad\ncar\n", (1, 2, 3, 255), "data.reduce_zero_label", True),
    ],
)
def test_labels_for_masks_with_other_values(make, classes, values, key, value):
    folder = make(classes)
    for split in ("train", "train", "val"):
        folder.add(split, stripes(*values))
    found = suggested(folder)
    assert found.keys() == {key}
    assert found[key].value == value
    option = shlex.split(found[key].option)[1]
    report = check(folder.config(option))
    assert report.ok
    assert report.suggestions == ()
    assert report.to_dict()["splits"]["train"]["class_pixels"] == [192 // len(values)] * (
        classes.count("\n")
    )


def test_class_weights_for_skewed_classes(make):
    rare = stripes(0)
    rare[0, 0] = 1
    folder = make()
    for split in ("train", "train", "val"):
        folder.add(split, rare)
    weights = suggested(folder)["loss.cross_entropy.class_weights"]
    assert weights.value == "median_frequency"
    assert "'road' has only 1.04% of the pixels" in weights.reason
    given_weights = "loss.cross_entropy.class_weights=[1,2,3]"
    assert suggested(folder, given_weights) == {}
    assert suggested(folder, "loss.dice.weight=1") == {}


def test_a_crop_for_images_that_are_smaller_than_the_crop(make):
    folder = make()
    for number in range(4):
        folder.add("train", stripes(0, 1, 2).repeat(9, 0).repeat(9, 1), noise(number, (72, 108)))
    folder.add("val", stripes(0, 1, 2))
    crop = suggested(folder, "data.crop_size=[320,480]")["data.crop_size"]
    assert crop.value == [64, 96]
    assert crop.reason.startswith("100% of the images are smaller than 320x480")
    assert "data.crop_size" not in suggested(folder, "data.crop_size=[64,64]")


def test_a_crop_for_images_of_which_it_shows_little(make):
    folder = make()
    folder.add("train", stripes(0, 1, 2).repeat(40, 0).repeat(40, 1), noise(0, (320, 480)))
    folder.add("val", stripes(0, 1, 2))
    crop = suggested(folder, "data.crop_size=[64,64]", "data.batch_size=1")["data.crop_size"]
    assert crop.value == [320, 480]
    assert crop.reason == "a crop of 64x64 shows 3% of an image (median)"


def test_a_batch_that_the_images_fill(make):
    assert suggested(make().fill(train=3), "data.batch_size=8")["data.batch_size"].value == 3


def test_skipping_damaged_files(make):
    folder = make().fill()
    (folder.root / "images/train/t1.png").write_bytes(b"no image")
    assert suggested(folder)["data.damaged"].value == "skip"
    assert suggested(folder, "data.damaged=skip") == {}


def test_settings_that_are_auto_are_decided_as_in_training(make):
    folder = make()
    for number in range(4):
        folder.add("train", stripes(0, 1).repeat(9, 0).repeat(9, 1), noise(number, (72, 108)))
    folder.add("val", stripes(0, 1))
    (folder.root / "classes.txt").unlink()
    report = check(settings(str(folder.root)))
    assert report.ok
    assert report.suggestions == ()
    assert report.config.data.crop_size == (64, 96)
    assert report.config.data.batch_size == 4
    notes = [problem.message for problem in report.of("note")]
    assert any(note.startswith("data.crop_size = [64, 96]: ") for note in notes)
    assert report.classes.names == ("background", "foreground")


def test_settings_stay_auto_if_no_image_is_readable(make):
    folder = make().fill()
    for path in (folder.root / "images").rglob("*.png"):
        path.write_bytes(b"no image")
    report = check(settings(str(folder.root)))
    assert {problem.kind for problem in report.of("error")} == {"damaged"}
    assert {suggestion.key for suggestion in report.suggestions} == {"data.damaged"}
