"""PASCAL VOC2012 segmentation, read in place from the official archive's layout.

Reference: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (Everingham et al., IJCV 2010 and 2015).
"""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.datasets.directory import (
    DirectorySource,
    check_split,
    files_by_stem,
    is_hidden,
    match,
    read_ids,
    require_root,
)
from fcn_jax.errors import DataError
from fcn_jax.plugins.api import Classes, Dataset, Source

VOC_CLASSES = Classes(
    names=(
        *(
            "background",
            "aeroplane",
            "bicycle",
            "bird",
            "boat",
            "bottle",
            "bus",
            "car",
            "cat",
            "chair",
            "cow",
        ),
        *(
            "diningtable",
            "dog",
            "horse",
            "motorbike",
            "person",
            "pottedplant",
            "sheep",
            "sofa",
            "train",
            "tvmonitor",
        ),
    ),
    palette=(
        *(
            (0, 0, 0),
            (128, 0, 0),
            (0, 128, 0),
            (128, 128, 0),
            (0, 0, 128),
            (128, 0, 128),
            (0, 128, 128),
            (128, 128, 128),
            (64, 0, 0),
        ),
        *(
            (192, 0, 0),
            (64, 128, 0),
            (192, 128, 0),
            (64, 0, 128),
            (192, 0, 128),
            (64, 128, 128),
            (192, 128, 128),
            (0, 64, 0),
        ),
        *((128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128)),
    ),
)
"""Background and the 20 classes of PASCAL VOC, with the devkit's colors."""


def find_devkit(root: Path) -> Path | None:
    """The VOC2012 folder: `root` may hold VOCdevkit, be VOCdevkit or be VOC2012 itself. None where it is neither."""
    candidates = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next(
        (path for path in candidates if (path / "ImageSets" / "Segmentation").is_dir()), None
    )


def open_devkit(devkit: Path, split: str) -> DirectorySource:
    """Open a split of a VOC2012 folder.

    Args:
        devkit: the folder that holds JPEGImages, SegmentationClass and ImageSets.
        split: the name of a file in ImageSets/Segmentation, such as "train", "val" or "trainval".

    Raises:
        DataError: no such split, an empty one, or missing images or masks.
    """
    lists = {
        path.stem: path
        for path in sorted((devkit / "ImageSets" / "Segmentation").glob("*.txt"))
        if not is_hidden(path.name)
    }
    check_split(split, lists, devkit)
    image_folder, mask_folder = devkit / "JPEGImages", devkit / "SegmentationClass"
    images = files_by_stem(image_folder, (".jpg", ".jpeg"))
    masks = files_by_stem(mask_folder, (".png",))
    palette = {color: label for label, color in enumerate(VOC_CLASSES.palette)} | {
        (224, 224, 192): 255
    }
    records = match(
        read_ids(lists[split]),
        images,
        masks,
        split=split,
        where=devkit,
        image_folder=image_folder,
        mask_folder=mask_folder,
    )
    return DirectorySource(VOC_CLASSES, records, palette=palette)


def _open(root: Path | None, split: str) -> Source:
    root = require_root(root, "voc2012", "VOCdevkit/VOC2012")
    devkit = find_devkit(root)
    if devkit is None:
        raise DataError(
            f"{root}: no VOCdevkit/VOC2012/ImageSets/Segmentation here; "
            "pass the folder into which VOCtrainval_11-May-2012.tar was extracted"
        )
    return open_devkit(devkit, split)


VOC2012 = Dataset(
    name="voc2012",
    summary="PASCAL VOC2012 segmentation, 21 classes, read in place (VOCdevkit layout)",
    open=_open,
    reference="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
)
