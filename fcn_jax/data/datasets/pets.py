"""Oxford-IIIT Pet: cats and dogs of 37 breeds, with trimaps of 3 classes, read in place.

    images/NAME.jpg
    annotations/trimaps/NAME.png    1 pet, 2 background, 3 border
    annotations/trainval.txt        3,680 lines "NAME class species breed"
    annotations/test.txt            3,669 lines

The splits `trainval` and `test` are official. `val` is every tenth image of `trainval`, from the
first on, and `train` is the rest, as in segmentation_models_pytorch's `OxfordPetDataset`.

Reference: Parkhi et al., "Cats and dogs", CVPR 2012; https://www.robots.ox.ac.uk/~vgg/data/pets/.
"""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.datasets import directory
from fcn_jax.data.datasets.files import file_names, subfolders
from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.source import Source
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Dataset

PETS_CLASSES = Classes(
    names=("pet", "background", "border"),
    palette=((220, 60, 60), (0, 0, 0), (240, 220, 120)),
)
"""The values 1, 2 and 3 of the trimaps."""

_LABELS = LabelMap(3, {1: 0, 2: 1, 3: 2, IGNORE_INDEX: IGNORE_INDEX}, listed=False)
_HOLDS = "images/, annotations/trimaps/, annotations/trainval.txt and annotations/test.txt"
_PACKED = ("images.tar*", "annotations.tar*")


def find(root: Path) -> Path | None:
    """The folder of images/ and annotations/trimaps/, in or below `root`; None if there is none."""
    for folder in (root, *(root / name for name in subfolders(root))):
        if (folder / "annotations" / "trimaps").is_dir() and (folder / "images").is_dir():
            return folder
    return None


def _open(root: Path | None, split: str) -> Source:
    folder = directory.locate(root, "pets", _HOLDS, find, _PACKED)
    annotations = folder / "annotations"
    lists = [name.removesuffix(".txt") for name in file_names(annotations, (".txt",))]
    parts = ("train", "val") if "trainval" in lists and "train" not in lists else ()
    directory.check_split(
        split, [*parts, *(n for n in lists if n not in ("list", "README"))], folder
    )
    lines = directory.read_ids(annotations / f"{'trainval' if split in parts else split}.txt")
    names = [line.split()[0] for line in lines if not line.startswith("#")]
    if split in parts:
        names = [name for at, name in enumerate(names) if (at % 10 == 0) == (split == "val")]
    images = directory.files_by_stem(folder / "images", (".jpg",))
    masks = directory.files_by_stem(annotations / "trimaps", (".png",))
    records = directory.match(names, images, masks, split=split, where=folder)
    return directory.DirectorySource(PETS_CLASSES, records, _LABELS)


PETS = Dataset(
    name="pets",
    summary="Oxford-IIIT Pet trimaps, 3 classes, read in place",
    open=_open,
    classes=PETS_CLASSES,
    reference="https://www.robots.ox.ac.uk/~vgg/data/pets/",
)
