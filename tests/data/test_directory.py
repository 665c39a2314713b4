"""Data sets read in place: every layout, and one clear error for every way in which a folder can be wrong."""

import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.api import IGNORE_INDEX, Dataset
from fcn_jax.data.camvid import CAMVID
from fcn_jax.data.folder import FOLDER, hash_split
from fcn_jax.data.voc import VOC2012, VOC_CLASSES
from fcn_jax.errors import DataError
from fcn_jax.palette import voc_palette


def write(path: Path, labels: np.ndarray | int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((12, 16), labels, np.uint8) if isinstance(labels, int) else labels
    assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


def make_voc(devkit: Path, names: dict[str, list[str]]) -> None:
    for split, ids in names.items():
        lists = devkit / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for name in ids:
            write(devkit / "JPEGImages" / f"{name}.jpg")
            mask = Image.fromarray(np.full((12, 16), 20, np.uint8))
            mask.putpalette([value for color in voc_palette(256) for value in color])
            (devkit / "SegmentationClass").mkdir(exist_ok=True)
            mask.save(devkit / "SegmentationClass" / f"{name}.png")


def make_folder(root: Path, classes: str = "ground\ntree\n", names: tuple[str, ...] = ("a", "b", "c"), sub: str = "") -> None:
    root.mkdir(exist_ok=True)
    (root / "classes.txt").write_text(classes)
    for name in names:
        write(root / "images" / sub / f"{name}.png")
        write(root / "masks" / sub / f"{name}.png", 1)


@pytest.mark.parametrize("given_root", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_opens_from_any_of_its_three_folders(given_root: str, tmp_path: Path) -> None:
    make_voc(tmp_path / "VOCdevkit" / "VOC2012", {"train": ["b", "a"], "val": ["c"]})
    source = VOC2012.open(tmp_path / given_root, "train")
    assert [source[i].id for i in range(len(source))] == ["b", "a"]
    assert (source.decode(source[0]).mask == 20).all()
    assert source.classes is VOC_CLASSES
    assert len(VOC_CLASSES) == 21


def test_voc_palette_follows_the_devkits_rule() -> None:
    assert VOC_CLASSES.palette == voc_palette(21)


def test_camvid_matches_by_stem_and_maps_its_void(tmp_path: Path) -> None:
    write(tmp_path / "train" / "x.png")
    write(tmp_path / "train" / "y.JPG")
    write(tmp_path / "trainannot" / "x.png", 11)
    write(tmp_path / "trainannot" / "y.png", 10)
    source = CAMVID.open(tmp_path, "train")
    assert [source[i].id for i in range(len(source))] == ["x", "y"]
    assert (source.decode(source[0]).mask == IGNORE_INDEX).all()
    assert (source.decode(source[1]).mask == 10).all()


@pytest.mark.parametrize("dataset", [VOC2012, CAMVID, FOLDER], ids=lambda d: d.name)
def test_without_a_folder_the_error_says_what_to_pass(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pass --data DIR"):
        dataset.open(None, "train")
    with pytest.raises(DataError, match="does not exist"):
        dataset.open(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="here"):
        dataset.open(tmp_path, "train")


def test_unknown_split_is_an_error_that_lists_the_splits(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc", {"train": ["a"], "val": ["b"]})
    with pytest.raises(DataError, match=r"no split 'trian'. Did you mean 'train'\? Available: train, val"):
        VOC2012.open(tmp_path / "voc", "trian")
    make_folder(tmp_path / "f")
    with pytest.raises(DataError, match=r"no split 'test'.*Available: train, val"):
        FOLDER.open(tmp_path / "f", "test")


def test_missing_images_and_masks_are_all_counted_when_the_split_is_opened(tmp_path: Path) -> None:
    make_voc(tmp_path, {"train": [f"i{k:02}" for k in range(20)]})
    for k in range(15):
        (tmp_path / "SegmentationClass" / f"i{k:02}.png").unlink()
    (tmp_path / "JPEGImages" / "i19.jpg").unlink()
    with pytest.raises(DataError) as caught:
        VOC2012.open(tmp_path, "train")
    assert "1 of 20 images are missing: i19" in str(caught.value)
    assert "15 of 20 masks are missing: i00, " in str(caught.value)
    assert "i11 and 3 more" in str(caught.value)


def test_empty_split_and_doubled_names_are_errors(tmp_path: Path) -> None:
    make_voc(tmp_path, {"train": ["a"], "val": []})
    with pytest.raises(DataError, match="split 'val' holds no images"):
        VOC2012.open(tmp_path, "val")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a\na\n")
    with pytest.raises(DataError, match="listed twice: a"):
        VOC2012.open(tmp_path, "train")


def test_two_images_of_one_stem_are_an_error(tmp_path: Path) -> None:
    make_folder(tmp_path / "f")
    write(tmp_path / "f" / "images" / "a.jpg")
    with pytest.raises(DataError, match=r"both a\.jpg and a\.png"):
        FOLDER.open(tmp_path / "f", "train")


def test_folder_takes_splits_from_files_or_from_subfolders(tmp_path: Path) -> None:
    make_folder(tmp_path / "files")
    (tmp_path / "files" / "splits").mkdir()
    (tmp_path / "files" / "splits" / "small.txt").write_text("c\na\n")
    source = FOLDER.open(tmp_path / "files", "small")
    assert [source[i].id for i in range(len(source))] == ["c", "a"]
    make_folder(tmp_path / "subs", names=("a", "b"), sub="train")
    make_folder(tmp_path / "subs", names=("z",), sub="night")
    assert [len(FOLDER.open(tmp_path / "subs", split)) for split in ("train", "night")] == [2, 1]
    with pytest.raises(DataError, match="Available: night, train"):
        FOLDER.open(tmp_path / "subs", "val")


def test_folder_without_splits_is_divided_whole_and_disjoint(tmp_path: Path) -> None:
    make_folder(tmp_path / "f", names=tuple(f"n{k}" for k in range(12)))
    ids = [[source[i].id for i in range(len(source))] for source in (FOLDER.open(tmp_path / "f", s) for s in ("train", "val"))]
    assert sorted(ids[0] + ids[1]) == sorted(f"n{k}" for k in range(12))
    assert ids[1]


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=60))
def test_hash_split_is_a_partition_with_two_sides_that_order_does_not_change(names: set[str]) -> None:
    split = hash_split(sorted(names))
    assert set(split["train"]) | set(split["val"]) == names
    assert not set(split["train"]) & set(split["val"])
    assert split["train"]
    assert split["val"]
    assert set(hash_split(sorted(names, reverse=True))["val"]) == set(split["val"])


def test_hash_split_is_about_nine_to_one_and_stays_when_images_are_added() -> None:
    small, large = (hash_split([f"img_{k}" for k in range(n)]) for n in (1000, 2000))
    assert 70 < len(small["val"]) < 130
    assert set(small["val"]) <= set(large["val"])
    assert set(small["train"]) <= set(large["train"])


def test_folder_masks_in_colors_follow_classes_txt(tmp_path: Path) -> None:
    make_folder(tmp_path / "f", "# comment\nbare ground 0 0 0\n\ntree 0 255 0\nvoid 255 255 255\n")
    colors = np.zeros((12, 16, 3), np.uint8)
    colors[:4], colors[4:8] = (0, 255, 0), (255, 255, 255)
    for name in "abc":
        write(tmp_path / "f" / "masks" / f"{name}.png", colors)
    source = FOLDER.open(tmp_path / "f", "train")
    assert source.classes.names == ("bare ground", "tree")
    assert source.classes.palette == ((0, 0, 0), (0, 255, 0))
    assert source.decode(source[0]).mask[:, 0].tolist() == [1] * 4 + [IGNORE_INDEX] * 4 + [0] * 4


def test_source_pickles(tmp_path: Path) -> None:
    make_folder(tmp_path / "f")
    source = FOLDER.open(tmp_path / "f", "train")
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0] == source[0]
    assert np.array_equal(copy.decode(copy[0]).image, source.decode(source[0]).image)


def test_reading_in_place_imports_neither_grain_nor_tfds_nor_jax() -> None:
    code = (
        "import sys, fcn_jax.data.transforms, fcn_jax.data.decode, fcn_jax.data.voc, fcn_jax.data.camvid, fcn_jax.data.folder, "
        "fcn_jax.data.shapes, fcn_jax.data.prepared\n"
        "heavy = {'grain', 'jax', 'tensorflow_datasets', 'array_record', 'tensorflow', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_voc_and_camvid_decode(shared: Path) -> None:
    for dataset, root, size in ((VOC2012, "data/VOCdevkit", 235), (CAMVID, "data/camvid", 101)):
        source = dataset.open(shared / root, "val")
        assert len(source) == size
        for index in range(0, size, 40):
            example = source.decode(source[index])
            assert example.image.shape == (*example.mask.shape, 3)
            assert set(np.unique(example.mask)) <= {*range(len(source.classes)), IGNORE_INDEX}
