"""Cityscapes: street scenes of 50 cities at 1024x2048, 19 classes, read in place.

    leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
    gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png       the 34 IDs of the annotation, or
    gtFine/SPLIT/CITY/NAME_gtFine_labelTrainIds.png  the 19 classes, which are preferred

Reference: Cordts et al., "The Cityscapes dataset", CVPR 2016; the table is
    https://github.com/mcordts/cityscapesScripts, cityscapesscripts/helpers/labels.py.
"""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.datasets import directory
from fcn_jax.data.datasets.files import subfolders
from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.source import Source
from fcn_jax.errors import DataError
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Dataset

CITYSCAPES_CLASSES = Classes(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
        "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
        "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
        (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
        (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
        (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
)  # fmt: skip
"""The 19 classes by train ID, with the official colors."""

_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The ID of each class; the other IDs from 0 to 33 are ignored."""

_OF_IDS = LabelMap(
    len(_IDS),
    dict.fromkeys((*range(34), IGNORE_INDEX), IGNORE_INDEX)
    | {number: label for label, number in enumerate(_IDS)},
    listed=False,
)
_KINDS = {
    "_gtFine_labelTrainIds": LabelMap.of(len(_IDS)),
    "_gtFine_labelIds": _OF_IDS,
}
"""Ending of the masks' names -> what they store; the first that every image has is used."""

_HOLDS = (
    "leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png (or "
    "*_gtFine_labelTrainIds.png)"
)
_PACKED = ("leftImg8bit*.zip", "gtFine*.zip")


def find(root: Path) -> tuple[Path, Path] | None:
    """The folders leftImg8bit and gtFine in `root` or in subfolders of it; None without both."""
    images, masks = (directory.first_folder(root, name) for name in ("leftImg8bit", "gtFine"))
    return (images, masks) if images and masks else None


def _open(root: Path | None, split: str) -> Source:
    images, masks = directory.locate(root, "cityscapes", _HOLDS, find, _PACKED)
    with_masks = subfolders(masks)
    splits = [name for name in subfolders(images) if name in with_masks]
    directory.check_split(split, splits, images.parent)
    found = directory.files_by_stem(images / split, directory.IMAGE_SUFFIXES, nested=True)
    named = directory.renamed(found, "_leftImg8bit")
    every = directory.files_by_stem(masks / split, (".png",), nested=True)
    of_kind = {ending: directory.renamed(every, ending) for ending in _KINDS}
    complete = [ending for ending, files in of_kind.items() if named.keys() <= files.keys()]
    # If none is complete, the error about missing masks is on the kind with the most.
    kind = next(iter(complete), max(of_kind, key=lambda ending: len(of_kind[ending])))
    if named and not of_kind[kind]:
        raise DataError(
            f"{masks / split}: no masks of the names CITY/*_gtFine_labelIds.png or "
            "CITY/*_gtFine_labelTrainIds.png here; unpack gtFine_trainvaltest.zip. Masks in colors "
            "and of instances are not read"
        )
    records = directory.match(tuple(named), named, of_kind[kind], split=split, where=images.parent)
    return directory.DirectorySource(CITYSCAPES_CLASSES, records, _KINDS[kind])


CITYSCAPES = Dataset(
    name="cityscapes",
    summary="Cityscapes street scenes (fine annotations), 19 classes, read in place",
    open=_open,
    classes=CITYSCAPES_CLASSES,
    reference="https://www.cityscapes-dataset.com",
)
