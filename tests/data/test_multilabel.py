"""Masks with any number of classes per pixel: files, transforms, counts and errors."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.data import multilabel
from fcn_jax.data.augment.rotation import rotated_crop
from fcn_jax.data.datasets.folder import FOLDER
from fcn_jax.data.datasets.voc import VOC2012
from fcn_jax.data.geometry import crop, flip_left_right, resize
from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.data.multilabel import MultilabelSource, read_multilabel_mask
from fcn_jax.data.splits import open_splits
from fcn_jax.errors import ConfigError, DamagedError, DataError
from fcn_jax.plugins.api import Example
from tests.helpers.layouts import make_voc
from tests.helpers.tiff_files import tiff_bytes


def drawn(height: int = 6, width: int = 8, classes: int = 3, seed: int = 0) -> np.ndarray:
    values = np.array([0, 1, 255], np.uint8)
    return values[np.random.default_rng(seed).integers(0, 3, (height, width, classes))]


def write_pages(path: Path, mask: np.ndarray) -> None:
    first, *others = (Image.fromarray(page) for page in np.moveaxis(mask, 2, 0))
    first.save(path, save_all=True, append_images=others, compression="tiff_lzw")


def write_folder(root: Path, masks: dict[str, np.ndarray]) -> Path:
    """Write a folder dataset; the first mask is the training split, the others are val."""
    for number, (name, mask) in enumerate(masks.items()):
        split = "val" if number else "train"
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(0, 256, (*mask.shape[:2], 3), np.uint8)
        Image.fromarray(image).save(root / "images" / split / f"{name}.png")
        np.save(root / "masks" / split / f"{name}.npy", mask)
    (root / "classes.txt").write_text("a\nb\nc\n")
    return root


@pytest.mark.parametrize("form", ["npy", "pages", "channels"])
def test_reads_arrays_pages_and_channels_alike(tmp_path: Path, form: str) -> None:
    mask = drawn()
    path = tmp_path / ("m.npy" if form == "npy" else "m.tif")
    if form == "npy":
        np.save(path, mask)
    elif form == "pages":
        write_pages(path, mask)
    else:
        path.write_bytes(tiff_bytes(mask, photometric=1))
    np.testing.assert_array_equal(read_multilabel_mask(path, 3), mask)


def test_one_class_is_one_channel(tmp_path: Path) -> None:
    mask = drawn(classes=1)
    np.save(tmp_path / "m.npy", mask[..., 0])
    np.testing.assert_array_equal(read_multilabel_mask(tmp_path / "m.npy", 1), mask)


def test_rejects_other_masks(tmp_path: Path) -> None:
    path = tmp_path / "m.npy"
    np.save(path, drawn(classes=2))
    with pytest.raises(DataError, match=r"m\.npy: the mask has 2 channels, and there are 3 "):
        read_multilabel_mask(path, 3)
    np.save(path, drawn() + 2)
    with pytest.raises(DataError, match="the values 2, 3; expected 0, 1 "):
        read_multilabel_mask(path, 3)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="truncated"):
        read_multilabel_mask(path, 3)
    Image.new("L", (8, 6)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"must be a \.npy file"):
        read_multilabel_mask(tmp_path / "m.png", 3)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.floats(0.3, 2.5))
def test_transforms_treat_each_class_as_a_mask_of_its_own(
    height: int, width: int, classes: int, factor: float
) -> None:
    mask = drawn(height, width, classes)
    image = np.zeros((height, width, 3), np.uint8)

    def transformed(mask: np.ndarray) -> np.ndarray:
        example = resize(Example("x", image, mask), factor)
        example = crop(flip_left_right(example), (5, 7), at=(0.4, 0.7))
        size, origin = (5, 6), (0, 1)
        return rotated_crop(example.image, example.mask, size, origin=origin, degrees=20.0)[1]

    expected = np.stack([transformed(mask[..., k]) for k in range(classes)], -1)
    np.testing.assert_array_equal(transformed(mask), expected)


def test_a_folder_is_opened_and_its_pixels_are_counted(tmp_path: Path) -> None:
    masks = {"x": drawn(seed=1), "y": drawn(seed=2)}
    masks["x"][..., 2] = 0
    root = write_folder(tmp_path, masks)
    opened = open_splits(FOLDER, root, ("train", "val"), task="multilabel")
    source = opened.sources["train"]
    assert isinstance(source, MultilabelSource)
    np.testing.assert_array_equal(source.decode(source[0]).mask, masks["x"])
    np.testing.assert_array_equal(opened.class_pixels, (masks["x"] == 1).sum((0, 1)))
    valid = (masks["x"] != 255).sum((0, 1))
    np.testing.assert_array_equal(opened.image_pixels, [*valid[:2], 0])
    assert any("1 of 3 classes have no pixel: c" in note for note in opened.notes)
    assert source.classes.palette == voc_palette(4)[1:]
    small = source.decode_resized(source[0], 0.5)
    assert (small.image.shape, small.mask.shape) == ((3, 4, 3), (3, 4, 3))


def test_all_unusable_masks_are_reported_together(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"x": drawn(), "y": drawn() + 3, "z": drawn(classes=4)})
    np.save(root / "masks" / "train" / "x.npy", drawn(4, 8))
    with pytest.raises(DataError, match="3 masks or images are not usable") as caught:
        open_splits(FOLDER, root, ("train", "val"), task="multilabel")
    for said in ("is 8x4 (width x height) but its image x is 8x6", "values 2, 3, 4", "4 channels"):
        assert said in str(caught.value)


def test_rejects_a_dataset_of_one_class_per_pixel(tmp_path: Path) -> None:
    make_voc(tmp_path, train=["2007_000001"])
    source = VOC2012.open(tmp_path, "train")
    with pytest.raises(ConfigError, match="dataset 'voc2012' has one class per pixel; use"):
        multilabel.multilabel(source, "voc2012")
