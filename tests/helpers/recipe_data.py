"""Tiny drawn datasets in the layouts of the shipped recipes' datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fcn_jax.data.datasets.shapes import draw_scene

SIZE = (40, 56)
TRAIN, VAL = 4, 2


def _scenes(kinds: int) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Split, name, image u8[40,56,3] and mask u8[40,56] of 0 to `kinds` - 1, and 255."""
    for number in range(TRAIN + VAL):
        image, mask = (np.ascontiguousarray(a[64:104, 64:120]) for a in draw_scene(number))
        labels = np.where(mask == 255, 255, mask % kinds).astype(np.uint8)
        yield ("train" if number < TRAIN else "val"), f"scene_{number}", image, labels


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_voc(root: Path) -> None:
    """VOCdevkit/VOC2012, with one training image that is smaller than the others."""
    base = root / "VOCdevkit" / "VOC2012"
    for split, name, image, mask in _scenes(7):
        cut = slice(0, 30 if name == "scene_0" else None)
        _save(base / "JPEGImages" / f"{name}.jpg", image[cut])
        _save(base / "SegmentationClass" / f"{name}.png", mask[cut])
        lists = base / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        with (lists / f"{split}.txt").open("a") as file:
            file.write(f"{name}\n")


def write_voc_aug(root: Path) -> None:
    """The same, with one more image in SegmentationClassAug."""
    write_voc(root)
    base = root / "VOCdevkit" / "VOC2012"
    _, _, image, mask = next(_scenes(7))
    _save(base / "JPEGImages" / "more.jpg", image)
    for path in (base / "SegmentationClass").iterdir():
        with Image.open(path) as opened:
            _save(base / "SegmentationClassAug" / path.name, np.asarray(opened))
    _save(base / "SegmentationClassAug" / "more.png", mask)


def write_camvid(root: Path) -> None:
    """SegNet's layout."""
    for split, name, image, mask in _scenes(7):
        _save(root / split / f"{name}.png", image)
        _save(root / f"{split}annot" / f"{name}.png", np.where(mask == 255, 11, mask))


def write_cityscapes(root: Path) -> None:
    """One city per split, masks of train IDs."""
    for split, name, image, mask in _scenes(7):
        _save(root / "leftImg8bit" / split / "bonn" / f"bonn_{name}_leftImg8bit.png", image)
        _save(root / "gtFine" / split / "bonn" / f"bonn_{name}_gtFine_labelTrainIds.png", mask)


def write_ade20k(root: Path) -> None:
    """ADEChallengeData2016: 0 is ignored."""
    base = root / "ADEChallengeData2016"
    for split, name, image, mask in _scenes(7):
        folder = {"train": "training", "val": "validation"}[split]
        _save(base / "images" / folder / f"ADE_{name}.jpg", image)
        labels = np.where(mask == 255, 0, mask + 1).astype(np.uint8)
        _save(base / "annotations" / folder / f"ADE_{name}.png", labels)


def write_pets(root: Path) -> None:
    """Trimaps of 1, 2 and 3, and the lists trainval and test."""
    lines = []
    for _, name, image, mask in _scenes(2):
        _save(root / "images" / f"{name}.jpg", image)
        trimap = np.where(mask == 255, 3, mask + 1).astype(np.uint8)
        _save(root / "annotations" / "trimaps" / f"{name}.png", trimap)
        lines.append(f"{name} 1 1 1\n")
    (root / "annotations" / "trainval.txt").write_text("".join(lines))
    (root / "annotations" / "test.txt").write_text("".join(lines[:2]))


def write_folder(root: Path) -> None:
    """Images and masks of the values 0 to 6 and 255, without classes and splits."""
    for _, name, image, mask in _scenes(7):
        _save(root / "images" / f"{name}.jpg", image)
        _save(root / "masks" / f"{name}.png", mask)


WRITERS: dict[str, Callable[[Path], None]] = {
    "ade20k": write_ade20k,
    "camvid": write_camvid,
    "cityscapes": write_cityscapes,
    "folder": write_folder,
    "pets": write_pets,
    "voc2012": write_voc,
    "voc2012_aug": write_voc_aug,
}
"""By dataset."""
