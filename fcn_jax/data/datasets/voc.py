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

VOC_LABELS = LabelMap.of(21, palette=_COLORS | {VOC_BORDER: IGNORE_INDEX})
"""The labels of VOC's masks: indexed or gray, or in the devkit's colors."""

HOLDS = "VOCdevkit/VOC2012/ with ImageSets/Segmentation/, JPEGImages/ and SegmentationClass/"
PACKED = ("VOCtrainval*.tar",)


def find_devkit(root: Path) -> Path | None:
    """The VOC2012 folder: `root`, or in `root` or `root/VOCdevkit`; None if there is none."""
    below = ("VOC2012", "VOCdevkit/VOC2012", "TrainVal/VOCdevkit/VOC2012")
    candidates = (root, *(root / name for name in below))
    return next((path for path in candidates if (path / _LISTS).is_dir()), None)


def split_lists(devkit: Path) -> dict[str, Path]:
    """The lists of a VOC2012 folder's splits, by name."""
    return {p.stem: p for p in sorted((devkit / _LISTS).glob("*.txt")) if not is_hidden(p.name)}


_LISTS = Path("ImageSets", "Segmentation")


def open_devkit(devkit: Path, split: str) -> directory.DirectorySource:
    """A split of a VOC2012 folder. Raises `DataError` for unknown splits and missing files."""
    lists = split_lists(devkit)
    directory.check_split(split, lists, devkit)
    images = directory.files_by_stem(devkit / "JPEGImages", (".jpg", ".jpeg"))
    masks = directory.files_by_stem(devkit / "SegmentationClass", (".png",))
    records = directory.match(
        directory.read_ids(lists[split]), images, masks, split=split, where=devkit
    )
    return directory.DirectorySource(VOC_CLASSES, records, VOC_LABELS)


def _open(root: Path | None, split: str) -> Source:
    return open_devkit(directory.locate(root, "voc2012", HOLDS, find_devkit, PACKED), split)


VOC2012 = Dataset(
    name="voc2012",
    summary="PASCAL VOC2012 segmentation, 21 classes, read in place (VOCdevkit layout)",
    open=_open,
    classes=VOC_CLASSES,
    reference="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
)
