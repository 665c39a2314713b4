"""A check reports all problems of a dataset together."""

import json

import numpy as np
import pytest
from PIL import Image

from fcn_jax.errors import DataError
from fcn_jax.explore.check import check
from fcn_jax.explore.text import text
from tests.helpers.folders import channels, multilabel_folder, noise, stripes


def said(report, severity):
    return [(problem.kind, problem.split, problem.message) for problem in report.of(severity)]


def test_sound_data_have_no_problems(make):
    report = check(make().fill().config())
    assert report.ok
    assert report.problems == ()
    table = report.to_dict()
    assert table["dataset"] == "folder"
    assert table["splits"]["train"] == {
        "images": 4,
        "readable": 4,
        "height": {"min": 8, "median": 8.0, "max": 8},
        "width": {"min": 12, "median": 12.0, "max": 12},
        "ignored": 0.0,
        "labeled_pixels": 384,
        "class_pixels": [128, 128, 128],
        "class_images": [4, 4, 4],
    }
    lines = text(report).splitlines()
    assert lines[0].endswith("mydata: 3 classes, 6 images in 2 splits")
    assert lines[-1] == "Result: 0 errors and 0 warnings"


def test_all_problems_are_reported_together(make):
    folder = make().fill(train=8)
    images = sorted((folder.root / "images/train").iterdir())
    masks = sorted((folder.root / "masks/train").iterdir())
    for path in images[:6]:
        path.write_bytes(b"no image")
    Image.fromarray(noise(0, (5, 5))).save(images[6])
    Image.fromarray(stripes(0, 1, 7)).save(masks[7])
    report = check(folder.config())
    assert not report.ok
    kinds = [(kind, split) for kind, split, _ in said(report, "error")]
    assert kinds == [("damaged", "train"), ("size", "train"), ("labels", "")]
    assert "labels outside the classes: 7" in report.of("error")[2].message
    shown = text(report)
    assert "  train: 6 files are damaged\n" in shown
    assert sum(str(path) in shown for path in images[:6]) == 5
    assert "    and 1 more\n" in shown
    assert shown.endswith("Result: 3 errors and 0 warnings\n")


def test_skipped_damaged_files_are_a_warning(make):
    folder = make().fill()
    (folder.root / "images/val/v5.png").write_bytes(b"no image")
    assert not check(folder.config()).ok
    report = check(folder.config("data.damaged=skip"))
    assert report.ok
    assert said(report, "warning") == [
        ("damaged", "val", "1 file is damaged (skipped, as data.damaged=skip says)")
    ]


def test_masks_of_0_and_255_are_an_error_with_advice(make):
    folder = make("background\nroad\n")
    for split in ("train", "train", "val"):
        folder.add(split, stripes(0, 255))
    (error,) = check(folder.config()).of("error")
    assert "every pixel of 'road' would be ignored" in error.message
    assert "`road 255 255 255`" in error.message


def test_odd_labels_are_warnings(make):
    folder = make()
    folder.add("train", stripes(0, 255, 255))
    folder.add("train", stripes(1, 255, 255))
    folder.add("val", stripes(2))
    warnings = said(check(folder.config()), "warning")
    assert ("classes", "train", "1 of 3 classes have no pixel: car") in warnings
    assert ("classes", "train", "67% of the pixels are void") in warnings
    assert ("classes", "val", "all pixels that count are 'car'; no other class has any") in warnings
    assert ("classes", "", "train and val have no class in common") in warnings


def test_problems_of_unused_splits_are_warnings(make):
    folder = make().fill()
    folder.add("test", stripes(255))
    folder.add("test", stripes(0, 9))
    report = check(folder.config())
    assert report.ok
    kinds = {(kind, split) for kind, split, _ in said(report, "warning")}
    assert ("labels", "test") in kinds


def test_a_missing_split_of_the_recipe_is_an_error(make):
    report = check(make().fill().config("data.val_split=validation"))
    ((kind, split, message),) = said(report, "error")
    assert (kind, split) == ("split", "validation")
    assert "--set data.val_split=val" in message
    assert set(report.splits) == {"train", "val"}


def test_an_unused_split_that_cannot_be_opened_is_a_warning(make):
    folder = make().fill()
    (folder.root / "splits").mkdir()
    for split, first in (("train", 1), ("val", 5)):
        names = [f"{split[0]}{number}" for number in range(first, first + 2)]
        (folder.root / "splits" / f"{split}.txt").write_text("\n".join(names))
        for kind in ("images", "masks"):
            for path in (folder.root / kind / split).iterdir():
                path.rename(folder.root / kind / path.name)
    (folder.root / "splits" / "test.txt").write_text("missing\n")
    report = check(folder.config())
    assert report.ok
    ((kind, split, message),) = said(report, "warning")
    assert (kind, split) == ("split", "test")
    assert "missing" in message


def test_images_whose_values_fit_no_range_are_named(make):
    folder = make().fill()
    Image.fromarray(np.full((8, 12), -5, np.float32)).save(folder.root / "images/train/t1.tif")
    (folder.root / "images/train/t1.png").unlink()
    (error,) = check(folder.config()).of("error")
    assert (error.kind, error.split, error.count) == ("unreadable", "train", 1)
    assert "t1.tif" in error.details[0]
    assert "negative values" in error.details[0]


def test_raises_if_there_is_nothing_to_check(tmp_path, make):
    with pytest.raises(DataError, match="missing here"):
        check(make().config())


def test_a_report_is_valid_json_even_if_nothing_is_readable(make):
    folder = make().fill(train=1, val=1)
    for path in folder.root.rglob("*.png"):
        path.write_bytes(b"no image")
    report = check(folder.config())
    table = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert table["splits"]["train"]["width"] is None
    assert [p["count"] for p in table["problems"]] == [2, 2]
    assert "Result: 2 errors" in text(report)


def test_one_pixel_and_one_image(make):
    folder = make()
    folder.add("train", np.zeros((1, 1), np.uint8), noise(0, (1, 1)))
    folder.add("val", np.ones((1, 1), np.uint8), noise(1, (1, 1)))
    assert check(folder.config()).ok


def test_other_classes_of_the_recipe_are_checked(make):
    folder = make().fill()
    report = check(folder.config("data.merge_classes={thing=['road','car']}"))
    assert report.ok
    assert report.classes.names == ("bg", "thing")
    assert report.to_dict()["splits"]["train"]["class_pixels"] == [128, 256]
    assert "the recipe changes the classes" in report.of("note")[0].message


def test_masks_of_several_classes_per_pixel_are_counted_by_class(tmp_path):
    config = multilabel_folder(tmp_path, [channels(4, 2, 0), channels(1, -1, 0), channels(1, 1, 1)])
    report = check(config)
    assert said(report, "error") == []
    assert said(report, "warning") == [("classes", "train", "1 of 3 classes have no pixel: rusty")]
    train = report.to_dict()["splits"]["train"]
    assert (train["class_pixels"], train["class_images"]) == ([30, 12, 0], [2, 1, 0])
    assert (train["ignored"], train["labeled_pixels"]) == (8 / 48, 40)
    (line,) = (line for line in text(report).splitlines() if line.startswith("cracked"))
    assert line.split() == ["cracked", "75.00%", "2", "25.00%", "1"]


def test_unusable_masks_of_several_classes_per_pixel_are_reported_together(tmp_path):
    config = multilabel_folder(tmp_path, [channels(4, 2, 1), channels(1, 1, 1), channels(1, 1, 1)])
    masks = tmp_path / "masks" / "train"
    np.save(masks / "0.npy", channels(1, 1, 1)[:, :, :2])
    np.save(masks / "1.npy", channels(1, 1, 1)[:3])
    (tmp_path / "masks" / "val" / "2.npy").write_bytes(b"no array")
    kinds = {(kind, split) for kind, split, _ in said(check(config), "error")}
    assert kinds == {("unreadable", "train"), ("size", "train"), ("unreadable", "val")}


def test_masks_of_one_class_per_pixel_do_not_fit_the_task(make):
    problems = check(make().fill().config("model.task=multilabel")).of("error")
    assert [problem.kind for problem in problems] == ["unreadable", "unreadable"]
    assert "must be a .npy file of shape (height, width, classes)" in problems[0].details[0]
