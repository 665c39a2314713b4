"""Images that occur several times are found by their pixels."""

from fcn_jax.explore.check import check
from tests.helpers.folders import noise, stripes


def found(folder, *changes):
    return [p for p in check(folder.config(*changes)).problems if p.kind == "duplicates"]


def test_distinct_images_are_no_duplicates(make):
    assert found(make().fill()) == []


def test_repeated_images_of_a_split_are_named_together(make):
    folder = make().fill()
    for name in ("a", "b", "c"):
        folder.add("train", stripes(0, 1), noise(99), name)
    (problem,) = found(folder)
    assert (problem.severity, problem.split, problem.count) == ("warning", "train", 2)
    assert problem.message.startswith("2 of 7 images repeat another image")
    assert problem.details == ("a = b = c",)


def test_training_images_in_the_validation_split_are_named(make):
    folder = make().fill()
    folder.add("train", stripes(0, 1), noise(99), "a")
    folder.add("val", stripes(0, 1), noise(99), "other")
    (problem,) = found(folder)
    assert (problem.severity, problem.split, problem.count) == ("warning", "val", 1)
    assert problem.message == "1 of 3 images are in train too, pixel by pixel"
    assert problem.details == ("other = train: a",)


def test_the_same_image_with_different_masks_is_named(make):
    folder = make().fill()
    folder.add("train", stripes(0, 1), noise(99), "a")
    folder.add("val", stripes(0, 2), noise(99), "b")
    _, problem = found(folder)
    assert problem.message == "equal images have different masks"
    assert problem.details == ("train: a = val: b",)


def test_a_split_that_holds_another_one_is_a_note_unless_both_are_used(make):
    folder = make().fill()
    for number in range(1, 7):
        folder.add("trainval", stripes(0, 1, 2), noise(number))
    notes = found(folder)
    assert [(p.severity, p.split, p.message) for p in notes] == [
        ("note", "train", "all 4 images are in trainval too"),
        ("note", "val", "all 2 images are in trainval too"),
    ]
    used = found(folder, "data.train_split=trainval")
    assert ("warning", "val") in {(p.severity, p.split) for p in used}


def test_the_same_file_in_both_splits_of_the_recipe_is_an_error(make):
    folder = make().fill()
    (image, mask) = folder.add("train", stripes(0, 1), noise(99), "a")
    for path in (image, mask):
        (path.parents[1] / "val" / "a.png").symlink_to(path)
    (problem,) = found(folder)
    assert (problem.severity, problem.split, problem.count) == ("error", "val", 1)
