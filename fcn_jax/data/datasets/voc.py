"""PASCAL VOC2012 segmentation, read in place from the official archive's layout.

Reference: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (Everingham et al., IJCV 2010 and 2015).
"""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.datasets import directory
from fcn_jax.data.datasets.files import is_hidden
from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.labels.palette import VOC_BORDER, voc_palette
from fcn_jax.data.source import Source
from fcn_jax.errors import DataError
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Dataset

VOC_CLASSES = Classes(
    names=(
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
        "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
        "sheep", "sofa", "train", "tvmonitor",
    ),
    palette=voc_palette(21),
)  # fmt: skip
"""Background and the 20 classes of PASCAL VOC, with the devkit's colors."""

_COLORS = {color: label for label, color in enumerate(VOC_CLASSES.palette)}
_LABELS = LabelMap.of(21, palette=_COLORS | {VOC_BORDER: IGNORE_INDEX})


def find_devkit(root: Path) -> Path | None:
    """The VOC2012 folder: `root`, or in `root` or `root/VOCdevkit`; None if there is none."""
    candidates = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((path for path in candidates if _lists_of(path).is_dir()), None)


def _lists_of(devkit: Path) -> Path:
    return devkit / "ImageSets" / "Segmentation"


def _open(root: Path | None, split: str) -> Source:
    root = directory.require_root(root, "voc2012", "VOCdevkit/VOC2012")
    devkit = find_devkit(root)
    if devkit is None:
        raise DataError(
            f"{root}: no VOCdevkit/VOC2012/ImageSets/Segmentation here; pass the folder into which "
            "VOCtrainval_11-May-2012.tar was extracted"
        )
    lists = {p.stem: p for p in sorted(_lists_of(devkit).glob("*.txt")) if not is_hidden(p.name)}
    directory.check_split(split, lists, devkit)
    images = directory.files_by_stem(devkit / "JPEGImages", (".jpg", ".jpeg"))
    masks = directory.files_by_stem(devkit / "SegmentationClass", (".png",))
    records = directory.match(
        directory.read_ids(lists[split]), images, masks, split=split, where=devkit
    )
    return directory.DirectorySource(VOC_CLASSES, records, _LABELS)


VOC2012 = Dataset(
    name="voc2012",
    summary="PASCAL VOC2012 segmentation, 21 classes, read in place (VOCdevkit layout)",
    open=_open,
    reference="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
)
