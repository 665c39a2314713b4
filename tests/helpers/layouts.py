"""Small trees in the official layouts of public datasets."""

import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

from fcn_jax.data.labels.palette import voc_palette

SIZE = (24, 32)


def photo(path: Path) -> None:
    """Write an image that depends on its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    small = rng.integers(0, 256, (3, 4, 3), np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(small, SIZE[::-1], interpolation=cv2.INTER_LINEAR))


def stripes(*values: int) -> np.ndarray:
    """u8[24,32], columns of equal width with the values."""
    return np.repeat(np.array([values], np.uint8), SIZE[1] // len(values), 1).repeat(SIZE[0], 0)


def gray(path: Path, *values: int) -> None:
    """Write a gray mask of stripes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), stripes(*values))


def colored(path: Path, *colors: tuple[int, int, int]) -> None:
    """Write an RGB mask of stripes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(colors, np.uint8)[stripes(*range(len(colors)))]).save(path)


def indexed(path: Path, *values: int) -> None:
    """Write a mask of stripes in VOC's palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(stripes(*values))
    mask.putpalette([value for color in voc_palette(256) for value in color])
    mask.save(path)


def mat_bytes(values: np.ndarray) -> bytes:
    """One of SBD's files in cls/."""
    buffer = io.BytesIO()
    savemat(buffer, {"GTcls": {"Segmentation": values, "CategoriesPresent": np.unique(values)}})
    return buffer.getvalue()


def lines(path: Path, *names: str) -> None:
    """Write a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def make_voc(root: Path, **splits: list[str]) -> Path:
    """Write VOCdevkit/VOC2012, whose masks are background, the 20th class and void."""
    devkit = root / "VOCdevkit" / "VOC2012"
    for split, names in splits.items():
        lines(devkit / "ImageSets" / "Segmentation" / f"{split}.txt", *names)
        for name in names:
            photo(devkit / "JPEGImages" / f"{name}.jpg")
            indexed(devkit / "SegmentationClass" / f"{name}.png", 0, 20, 255, 0)
    return devkit


def make_sbd(root: Path, **splits: list[str]) -> Path:
    """Write benchmark_RELEASE/dataset, whose masks are background and the third class."""
    dataset = root / "benchmark_RELEASE" / "dataset"
    for split, names in splits.items():
        lines(dataset / f"{split}.txt", *names)
        for name in names:
            photo(dataset / "img" / f"{name}.jpg")
            (dataset / "cls").mkdir(exist_ok=True)
            (dataset / "cls" / f"{name}.mat").write_bytes(mat_bytes(stripes(0, 3)))
    return dataset


def make_cityscapes(root: Path, kinds: Mapping[str, tuple[int, ...]]) -> None:
    """Write two cities of train and one of val, with masks of the given endings and stripes."""
    for split, city, number in (
        ("train", "aachen", "000000_000019"),
        ("train", "bochum", "000000_000600"),
        ("val", "lindau", "000001_000019"),
    ):
        name = f"{city}_{number}"
        photo(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        for ending, values in kinds.items():
            gray(root / "gtFine" / split / city / f"{name}_gtFine_{ending}.png", *values)
        (root / "gtFine" / split / city / f"{name}_gtFine_polygons.json").write_text("{}")


def make_ade(root: Path) -> None:
    """Write ADEChallengeData2016 with three images."""
    base = root / "ADEChallengeData2016"
    for split, short, count in (("training", "train", 2), ("validation", "val", 1)):
        for at in range(1, count + 1):
            photo(base / "images" / split / f"ADE_{short}_{at:08d}.jpg")
            gray(base / "annotations" / split / f"ADE_{short}_{at:08d}.png", 0, 1, 7, 150)


def make_pets(root: Path, count: int = 12) -> None:
    """Write images/ and annotations/ with `count` images of trainval and two of test."""
    trainval = [f"Abyssinian_{at}" for at in range(100, 100 + count)]
    for name, names in (("trainval", trainval), ("test", ["Bombay_1", "pug_2"])):
        lines(root / "annotations" / f"{name}.txt", *(f"{each} 1 1 1" for each in names))
        for each in names:
            photo(root / "images" / f"{each}.jpg")
            gray(root / "annotations" / "trimaps" / f"{each}.png", 1, 2, 3, 2)
    lines(root / "annotations" / "list.txt", "#Image CLASS-ID SPECIES BREED ID", "Bombay_1 1 1 1")
    (root / "annotations" / "trimaps" / "._Bombay_1.png").write_bytes(b"a file of macOS")


def make_cvat(root: Path, names: list[str], split: str = "default") -> None:
    """Write an export of CVAT's "Segmentation mask" with images."""
    rows = ("# label:color_rgb:parts:actions", "background:0,0,0::", "road:128,64,128::")
    lines(root / "labelmap.txt", *rows, "car:0,0,142::")
    lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", *names)
    for name in names:
        photo(root / "JPEGImages" / f"{name}.jpg")
        mask = root / "SegmentationClass" / f"{name}.png"
        colored(mask, (0, 0, 0), (128, 64, 128), (0, 0, 142), (0, 0, 0))
        colored(root / "SegmentationObject" / f"{name}.png", (0, 0, 0), (128, 0, 0))


def make_coco(root: Path, objects: Mapping[str, list[dict[str, object]]], split: str) -> Path:
    """Write images and annotations/instances_SPLIT.json; returns the file.

    Args:
        root: the dataset's folder.
        objects: the annotations of each image by its name, without ID and image.
        split: such as "val2017".
    """
    names = ("person", "car", "zebra", "tv", "airplane")
    categories = [{"id": 10 * at, "name": name} for at, name in enumerate(names, 1)]
    images, annotations = [], []
    for at, (name, found) in enumerate(objects.items()):
        photo(root / split / f"{name}.jpg")
        height, width = SIZE
        images.append({"id": at, "file_name": f"{name}.jpg", "height": height, "width": width})
        for each in found:
            annotations.append({"id": len(annotations), "image_id": at, "iscrowd": 0, **each})
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    contents = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(contents))
    return path
