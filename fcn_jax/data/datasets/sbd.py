"""SBD: 11,355 images with VOC's classes, annotated by the authors of Semantic Contours.

Its masks are MATLAB files (`fcn_jax.data.images.mat`).

Reference: Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011;
    http://home.bharathh.info/pubs/codes/SBD/download.html.
"""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.datasets import directory
from fcn_jax.data.datasets.files import file_names, subfolders
from fcn_jax.data.datasets.voc import VOC_CLASSES
from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.source import Source
from fcn_jax.plugins.api import Dataset

HOLDS = "benchmark_RELEASE/dataset/ with img/, cls/, train.txt and val.txt"
PACKED = ("benchmark*.t*",)


def find(root: Path, *, nested: bool = True) -> Path | None:
    """SBD's folder `dataset` in `root`, or in a subfolder if `nested`; None if there is none."""
    for base in (root, *(root / name for name in (subfolders(root) if nested else ()))):
        for folder in (base, base / "dataset", base / "benchmark_RELEASE" / "dataset"):
            if (folder / "cls").is_dir() and (folder / "img").is_dir():
                return folder
    return None


def read_split(folder: Path, split: str) -> tuple[str, ...]:
    """The names of a split's images. Raises `DataError` if there is no such list."""
    lists = [name.removesuffix(".txt") for name in file_names(folder, (".txt",))]
    directory.check_split(split, lists, folder)
    return directory.read_ids(folder / f"{split}.txt")


def _open(root: Path | None, split: str) -> Source:
    folder = directory.locate(root, "sbd", HOLDS, find, PACKED)
    ids = read_split(folder, split)
    images = directory.files_by_stem(folder / "img", (".jpg",))
    masks = directory.files_by_stem(folder / "cls", (".mat",))
    records = directory.match(ids, images, masks, split=split, where=folder)
    return directory.DirectorySource(VOC_CLASSES, records, LabelMap.of(len(VOC_CLASSES)))


SBD = Dataset(
    name="sbd",
    summary="SBD, 11,355 images with VOC's 21 classes, read in place (masks in .mat files)",
    open=_open,
    classes=VOC_CLASSES,
    reference="http://home.bharathh.info/pubs/codes/SBD/download.html",
)
