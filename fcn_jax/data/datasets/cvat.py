"""CVAT's export "Segmentation mask", with its own classes in labelmap.txt, read in place.

    labelmap.txt                         name:R,G,B:parts:actions
    JPEGImages/NAME.jpg                  with "Save images"; images/ is read, too
    SegmentationClass/NAME.png           masks in the colors of labelmap.txt
    ImageSets/Segmentation/default.txt   names; one list for each subset of the project

Without lists named train and val, a hash of the names divides the images into them, as for the
dataset `folder`.

Reference: https://docs.cvat.ai/docs/dataset_management/formats/format-smask.
"""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.datasets import directory
from fcn_jax.data.datasets.files import subfolders
from fcn_jax.data.datasets.hash_split import hash_part, hash_split
from fcn_jax.data.datasets.voc import split_lists
from fcn_jax.data.labels.class_list import read_class_list
from fcn_jax.data.source import Source
from fcn_jax.errors import DataError
from fcn_jax.plugins.api import Dataset

_HOLDS = (
    "labelmap.txt, SegmentationClass/ and JPEGImages/ (CVAT's export 'Segmentation mask' with "
    "'Save images')"
)


def find(root: Path) -> Path | None:
    """The folder of labelmap.txt and SegmentationClass/, in or below `root`; None without both.

    Exports of other tools have arrays instead of PNG files in SegmentationClass/.
    """
    for folder in (root, *(root / name for name in subfolders(root))):
        masks = folder / "SegmentationClass"
        if (folder / "labelmap.txt").is_file() and next(masks.rglob("*.png"), None):
            return folder
    return None


def _open(root: Path | None, split: str) -> Source:
    folder = directory.locate(root, "cvat", _HOLDS, find)
    image_folder = directory.first_folder(folder, "JPEGImages", "images")
    if image_folder is None:
        raise DataError(
            f"{folder}: the images are missing; export again from CVAT with 'Save images', or put "
            "them into JPEGImages/"
        )
    images = directory.files_by_stem(image_folder, directory.IMAGE_SUFFIXES, nested=True)
    masks = directory.files_by_stem(folder / "SegmentationClass", (".png",), nested=True)
    lists = split_lists(folder)
    notes: tuple[str, ...] = ()
    if split in lists:
        ids = directory.read_ids(lists[split])
    elif lists.keys() & {"train", "val"} or split not in ("train", "val"):
        directory.check_split(split, lists or ("train", "val"), folder)
    else:
        every = [name for path in lists.values() for name in directory.read_ids(path)]
        names = dict.fromkeys(every or images)
        ids = hash_part(names, split, folder)
        sizes = " and ".join(f"{part} ({len(of)})" for part, of in hash_split(names).items())
        notes = (f"images are divided by a hash of their names into {sizes}",)
    classes = read_class_list(folder / "labelmap.txt")
    records = directory.match(ids, images, masks, split=split, where=folder)
    return directory.DirectorySource(
        classes.classes, records, classes.labels, (*classes.notes, *notes)
    )


CVAT = Dataset(
    name="cvat",
    summary="CVAT's export 'Segmentation mask' with labelmap.txt, read in place",
    open=_open,
    reference="https://docs.cvat.ai/docs/dataset_management/formats/format-smask",
)
