"""Suggested settings fit the data, and can be pasted."""

import shlex

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.config import parse
from fcn_jax.explore.check import check
from fcn_jax.explore.suggestions import crop_size
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
    assert "99% of the labeled pixels are 'bg' and 1% 'road'" in weights.reason
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


@given(st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=20))
def test_a_crop_is_a_multiple_of_32_that_three_of_four_images_fill(sizes):
    crop = np.array(crop_size(np.array(sizes, np.int32)))
    assert (crop % 32 == 0).all()
    assert (crop >= 32).all()
    assert (crop <= 512).all()
    for side, length in enumerate(crop.tolist()):
        if length > 32:
            assert np.mean([size[side] >= length for size in sizes]) >= 0.75


@pytest.mark.parametrize(
    ("size", "crop"),
    [((360, 480), (352, 480)), ((375, 500), (352, 480)), ((1024, 2048), (512, 512))],
)
def test_crops_for_usual_sizes(size, crop):
    assert crop_size(np.array([size] * 5, np.int32)) == crop
