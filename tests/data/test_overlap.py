"""Images in two splits are refused, by whatever names and links they are reached."""

import os
import shutil
from pathlib import Path

import pytest

from fcn_jax.data.datasets.directory import DirectorySource
from fcn_jax.data.datasets.folder import FOLDER
from fcn_jax.data.overlap import refuse_overlaps
from fcn_jax.data.splits import open_splits
from fcn_jax.errors import DataError
from fcn_jax.plugins.api import Classes, Record
from tests.helpers.layouts import gray, lines, photo


def make(root: Path, **splits: list[str]) -> Path:
    root.mkdir()
    (root / "classes.txt").write_text("ground\nroad\n")
    for split, names in splits.items():
        lines(root / "splits" / f"{split}.txt", *names)
        for name in names:
            photo(root / "images" / f"{name}.jpg")
            gray(root / "masks" / f"{name}.png", 0, 1)
    return root


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_splits(FOLDER, root, ("train", "val"))
    return str(caught.value)


def test_refuses_lists_with_common_images(tmp_path: Path) -> None:
    root = make(tmp_path / "d", train=["a", "b", "c"], val=["c", "d", "a"])
    assert refusal(root).startswith(
        "2 of 3 images of split 'val' are in 'train' too: c, a; scores on images that were trained "
        "on mean nothing. Remove them from one of the lists"
    )
    # One split for both is said by the settings, and not a mistake.
    assert len(open_splits(FOLDER, root, ("train", "train")).sources) == 1
    assert len(open_splits(FOLDER, root, ("val",), training=False).sources["val"]) == 3


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_refuses_links_to_the_same_file(link: str, tmp_path: Path) -> None:
    root = make(tmp_path / "d", train=["a", "b"], val=["c"])
    image = root / "images" / "c.jpg"
    image.unlink()
    if link == "hard":
        os.link(root / "images" / "a.jpg", image)
    else:
        image.symlink_to("a.jpg")
    assert "1 of 1 images of split 'val' are in 'train' too: c;" in refusal(root)


def make_folders(root: Path) -> Path:
    root.mkdir()
    (root / "classes.txt").write_text("ground\nroad\n")
    for split in ("train", "val"):
        photo(root / "images" / split / "0001.jpg")
        gray(root / "masks" / split / "0001.png", 0, 1)
    return root


def test_equal_names_are_refused_only_with_equal_contents(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "d")  # the same picture, since its name is the same
    assert "1 of 1 images of split 'val' are in 'train' too: 0001;" in refusal(root)
    photo(root / "images" / "val" / "other.jpg")
    shutil.move(root / "images" / "val" / "other.jpg", root / "images" / "val" / "0001.jpg")
    assert len(open_splits(FOLDER, root, ("train", "val")).sources) == 2


def test_compares_contents_in_memory() -> None:
    classes = Classes(("a",), ((0, 0, 0),))

    def source(*records: Record) -> DirectorySource:
        return DirectorySource(classes, records)

    one, two = Record("1", b"one", b"m"), Record("2", b"two", b"m")
    refuse_overlaps({"train": source(one), "val": source(two)}, "train")
    with pytest.raises(DataError, match=r"1 of 2 images of split 'val' are in 'train' too: x;"):
        refuse_overlaps({"train": source(one), "val": source(two, one._replace(id="x"))}, "train")


def test_missing_files_are_left_to_other_checks(tmp_path: Path) -> None:
    classes = Classes(("a",), ((0, 0, 0),))
    gone = [DirectorySource(classes, [Record("a", tmp_path / n, b"")]) for n in ("x", "y")]
    refuse_overlaps({"train": gone[0], "val": gone[1]}, "train")


def test_one_image_says_how_to_try_the_training_out(tmp_path: Path) -> None:
    root = tmp_path / "d"
    (root / "images").mkdir(parents=True)
    (root / "classes.txt").write_text("ground\nroad\n")
    photo(root / "images" / "only.jpg")
    gray(root / "masks" / "only.png", 0, 1)
    assert "one image cannot be divided into train and val; add images, or, to try" in refusal(root)
    opened = open_splits(FOLDER, root, ("train", "train"))
    assert len(opened.sources["train"]) == 1
