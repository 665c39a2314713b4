"""COCO with VOC's classes: masks drawn from the annotations of objects.

    annotations/instances_train2017.json    polygons and run lengths
    train2017/NAME.jpg, or images/train2017/NAME.jpg

Masks are made as torchvision's reference training makes them: background and the 20 categories that
VOC has; where objects overlap, and where a crowd is, pixels are ignored; images for training have
more than 1,000 pixels of objects. They are drawn once, as PNG files in the cache.

Reference: Lin et al., "Microsoft COCO", ECCV 2014;
    https://github.com/pytorch/vision, references/segmentation/coco_utils.py. There a crowd is an
    object like others.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fcn_jax.data.datasets import directory
from fcn_jax.data.datasets.coco_masks import draw
from fcn_jax.data.datasets.files import file_names, subfolders
from fcn_jax.data.datasets.prepared import prepared
from fcn_jax.data.datasets.voc import VOC_CLASSES
from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.source import Source
from fcn_jax.data.threads import on_threads
from fcn_jax.errors import DataError
from fcn_jax.plugins.api import IGNORE_INDEX, Dataset
from fcn_jax.runtime.progress import Progress

_CATEGORIES = (
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch",
    "train", "tv",
)  # fmt: skip
"""COCO's names of VOC's classes, in order from label 1 on."""

_MIN_AREA = 1000
"""An image for training has objects of more pixels."""

_HOLDS = "annotations/instances_*.json, train2017/ and val2017/"
_PACKED = ("annotations_trainval*.zip", "[tv]*201[47].zip")
_ANNOTATIONS = re.compile(r"instances_(.+)\.json")


def find(root: Path) -> Path | None:
    """The folder of annotations/instances_*.json, in or below `root`; None if there is none."""
    for folder in (root, *(root / name for name in subfolders(root))):
        if (folder / "annotations").is_dir() and _splits(folder):
            return folder
    return None


def _splits(folder: Path) -> dict[str, str]:
    """Split -> its name in COCO, as train2017; train and val are those of the last year."""
    names = [_ANNOTATIONS.fullmatch(name) for name in file_names(folder / "annotations")]
    found = {match[1]: match[1] for match in names if match}
    for name in sorted(found):
        found[re.sub(r"\d+$", "", name)] = name
    return found


def _open(root: Path | None, split: str) -> Source:
    folder = directory.locate(root, "coco_voc", _HOLDS, find, _PACKED)
    splits = _splits(folder)
    directory.check_split(split, splits, folder)
    name = splits[split]
    annotations = folder / "annotations" / f"instances_{name}.json"
    make = functools.partial(_draw_all, annotations, name.startswith("train"))
    masks = directory.files_by_stem(prepared(f"coco_voc-{name}", [annotations], make), (".png",))
    images = folder / name
    images = images if images.is_dir() else folder / "images" / name
    records = directory.match(
        tuple(masks),
        directory.files_by_stem(images, directory.IMAGE_SUFFIXES),
        masks,
        split=split,
        where=folder,
    )
    return directory.DirectorySource(VOC_CLASSES, records, LabelMap.of(len(VOC_CLASSES)))


def _draw_all(annotations: Path, training: bool, folder: Path) -> None:
    """Draw the masks of a file of annotations into a folder."""
    images, objects = _read(annotations, training)
    if not images:
        raise DataError(f"{annotations}: no image has objects of the {len(_CATEGORIES)} categories")

    def one(image: Mapping[str, Any]) -> None:
        mask = _mask(image, objects.get(image["id"], ()), annotations)
        png = cv2.imencode(".png", mask)[1].tobytes()
        (folder / Path(image["file_name"]).with_suffix(".png").name).write_bytes(png)

    with Progress(f"drawing masks of {annotations.name}", len(images)) as progress:
        on_threads(one, images, progress.update)


def _read(
    path: Path, training: bool
) -> tuple[list[Mapping[str, Any]], dict[int, list[tuple[int, Mapping[str, Any]]]]]:
    """The images to use, and by image ID the label and the annotation of each object."""
    try:
        with path.open("rb") as file:
            contents = json.load(file)
        names = {category["name"]: category["id"] for category in contents["categories"]}
        labels = {names[name]: at + 1 for at, name in enumerate(_CATEGORIES) if name in names}
        objects: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
        for annotation in contents["annotations"]:
            label = labels.get(annotation["category_id"])
            if label is not None:
                objects.setdefault(annotation["image_id"], []).append((label, annotation))
        images = [
            image
            for image in contents["images"]
            if not training
            or sum(each["area"] for _, each in objects.get(image["id"], ())) > _MIN_AREA
        ]
        for image in images:
            _ = image["file_name"], int(image["height"]), int(image["width"])
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: not a file of COCO's object annotations ({reason}); expected the keys "
            "images, annotations and categories, as in instances_val2017.json"
        ) from error
    if not labels:
        raise DataError(f"{path}: none of COCO's 20 categories that VOC has is in the file")
    return images, objects


def _mask(
    image: Mapping[str, Any], objects: Iterable[tuple[int, Mapping[str, Any]]], path: Path
) -> np.ndarray:
    """u8[H,W], the labels of an image."""
    height, width = int(image["height"]), int(image["width"])
    mask = np.zeros((height, width), np.uint8)
    covered = np.zeros((height, width), bool)
    ignored = np.zeros((height, width), bool)
    for label, annotation in objects:
        try:
            region = draw(annotation["segmentation"], height, width)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: annotation {annotation.get('id')} of {image['file_name']} cannot be "
                f"drawn ({error})"
            ) from error
        ignored |= region & covered
        if annotation.get("iscrowd"):
            ignored |= region
        covered |= region
        mask[region] = label
    mask[ignored] = IGNORE_INDEX
    return mask


COCO_VOC = Dataset(
    name="coco_voc",
    summary="COCO with VOC's 21 classes, masks drawn from the annotations of objects",
    open=_open,
    classes=VOC_CLASSES,
    reference="https://cocodataset.org",
)
