"""Any folder of images and masks, read in place.

    DIR/
      classes.txt          one class a line, in the order of the labels: `name`, or `name R G B`
      images/ID.jpg        JPEG, PNG, BMP, TIFF or WebP
      masks/ID.png         indexed or gray PNG whose values are labels; or in colors where every class has its color
      splits/train.txt     optional: the IDs of a split, one a line; as many files as there are splits

Instead of `splits/`, each split may have subfolders: `images/train/ID.jpg` and `masks/train/ID.png`. With neither, the images
are divided into `train` and `val` by a hash of their names, about nine to one: the same on every machine, and adding images
moves none from one side to the other.

The list of classes may be one that an annotation tool writes (`fcn_jax.data.class_lists`). In `classes.txt` blank lines and lines that
start with `#` are skipped. Lines named `void` are stored values or colors that neither the loss nor a metric counts; 255 is void, too,
unless it is a class. What an ID in a split file may be, `fcn_jax.data.directory.match` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from fcn_jax.api import Dataset, Source
from fcn_jax.data.class_lists import Ids, find_class_list
from fcn_jax.data.directory import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    DirectorySource,
    check_split,
    entries,
    files_by_stem,
    image_count,
    match,
    read_ids,
    require_root,
)
from fcn_jax.errors import DataError, listing

_NO_SPLITS = ("readme", "license", "licence", "notes", "changelog", "classes", "labels", "labelmap", "requirements", "info")
"""Names of text files that are no lists of images."""

_ALSO_IMAGES = ("image", "imgs", "img", "jpegimages", "images", "photos", "pictures", "leftimg8bit", "data")
_ALSO_MASKS = (
    "mask",
    "masks",
    "labels",
    "label",
    "annotations",
    "annotation",
    "segmentationclass",
    "gt",
    "ground_truth",
    "gtfine",
    "seg",
)


def hash_split(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Divide names into "train" and "val": val takes those whose SHA-256's first eight bytes are divisible by ten.

    Where that leaves a side of two or more images empty, the name of lowest hash goes to val, or that of highest to train.

    Args:
        names: image names without ending.

    Returns:
        The names of each split, in the order given.
    """
    hashes = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names}
    val = {name for name, value in hashes.items() if value % 10 == 0}
    if len(hashes) > 1 and not val:
        val = {min(hashes, key=hashes.__getitem__)}
    elif len(hashes) > 1 and len(val) == len(hashes):
        val.remove(max(hashes, key=hashes.__getitem__))
    return {"train": tuple(name for name in hashes if name not in val), "val": tuple(name for name in hashes if name in val)}


def _open(root: Path | None, split: str) -> Source:
    root = require_root(root, "folder", "images/, masks/ and classes.txt")
    lacking = [f"{name}/" for name in ("images", "masks") if not (root / name).is_dir()]
    if lacking:
        raise DataError(
            f"{root}: {listing(lacking)} missing here; a folder data set holds images/, masks/ and classes.txt{_what_lies(root)}"
        )
    images, masks = root / "images", root / "masks"
    lists = _split_lists(root / "splits")
    notes = []
    if lists:
        check_split(split, lists, root / "splits")
        nested = image_count(images) == 0
        found_images = files_by_stem(images, IMAGE_SUFFIXES, nested=nested)
        found_masks = files_by_stem(masks, MASK_SUFFIXES, nested=nested or image_count(masks) == 0)
        ids: Sequence[str] = read_ids(lists[split])
    else:
        subfolders, flat, said = _layout(images, masks, split)
        notes += said
        if not flat:
            check_split(split, subfolders, images)
            images, masks = images / split, masks / split
        found_images = files_by_stem(images, IMAGE_SUFFIXES)
        found_masks = files_by_stem(masks, MASK_SUFFIXES)
        ids = tuple(found_images)
        if flat:
            parts = hash_split(found_images)
            check_split(split, parts, root)
            ids = parts[split]
            notes.append(
                f"images are divided by a hash of their names into train ({len(parts['train'])}) and val ({len(parts['val'])})"
            )
            unused = [name for name in ("train.txt", "val.txt", "test.txt") if (root / name).is_file()]
            if unused:
                notes.append(f"{listing(unused)} in {root} is not used; a list of a split lies in splits/")
        lone = [name for name in found_masks if name not in found_images]
        if lone and any(name in found_masks for name in found_images):
            notes.append(f"{len(lone)} masks in {masks} have no image: {listing(lone)}")
    classes = find_class_list(root, ids=_ids_stored(found_masks))
    records = match(ids, found_images, found_masks, split=split, where=root, image_folder=images, mask_folder=masks)
    return DirectorySource(classes.classes, records, labels=classes.labels, notes=(*classes.notes, *notes))


def _split_lists(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    names = [entry.name for entry in entries(folder) if not entry.is_dir()]
    paths = [folder / name for name in names if name.lower().endswith(".txt")]
    return {path.stem: path for path in paths if path.stem.lower() not in _NO_SPLITS}


def _layout(images: Path, masks: Path, split: str) -> tuple[list[str], bool, list[str]]:
    """The splits that have subfolders, whether the images lie in no subfolder, and what is to be said about it."""
    with_images = [entry.name for entry in entries(images) if entry.is_dir() and image_count(images / entry.name)]
    with_masks = {entry.name for entry in entries(masks) if entry.is_dir()}
    splits = [name for name in with_images if name in with_masks]
    stray = [name for name in with_images if name not in with_masks]
    files, flat_masks = image_count(images), image_count(masks)
    if files and splits and flat_masks and split in splits:
        raise DataError(
            f"{images}: {files} images lie here and others in {split}/, and so do the masks; keep one, or list the images of "
            f"each split in {images.parent}/splits/{split}.txt"
        )
    if splits and not (files and flat_masks):
        said = [f"{files} images in {images} itself belong to no split and are not used"] if files else []
        if stray:
            said.append(
                f"{images}: the subfolders {listing(stray)} hold images but {masks.name}/ has no such subfolders; they are not used"
            )
        return splits, False, said
    if not files and stray:
        raise DataError(
            f"{masks}: the subfolders {listing(stray)} are missing here, which hold the images of {images.name}/; masks of "
            "images/SPLIT/ lie in masks/SPLIT/"
        )
    ignored = [*splits, *stray]
    said = [f"{images}: the images in the subfolders {listing(ignored)} are not used"] if ignored else []
    return [], True, said


def _ids_stored(masks: Iterable[str]) -> Ids | None:
    """Which of Cityscapes' numbers masks store, by their names."""
    endings = {ending for name in masks for ending in ("labelTrainIds", "labelIds") if name.endswith(ending)}
    if endings == {"labelTrainIds"}:
        return "trainId"
    return "id" if endings == {"labelIds"} else None


def _what_lies(root: Path) -> str:
    """What a folder without images/ or masks/ holds instead, as advice."""
    if (root / "trainannot").is_dir():
        return f". {root} looks like CamVid: use the data set camvid"
    if any((root / name).is_dir() for name in ("JPEGImages", "VOC2012", "VOCdevkit")) and not (root / "masks").is_dir():
        return f". {root} looks like PASCAL VOC: use the data set voc2012, or rename JPEGImages/ to images/, SegmentationClass/ to masks/"
    folders = [entry.name for entry in entries(root) if entry.is_dir()]
    for name in folders:
        if (root / name / "images").is_dir() and (root / name / "masks").is_dir():
            return f". {root / name} holds both: pass --data {root / name}"
    advice = []
    for wanted, also in (("images", _ALSO_IMAGES), ("masks", _ALSO_MASKS)):
        near = [name for name in folders if name.lower() in also and name != wanted]
        if near and not (root / wanted).is_dir():
            advice.append(f"rename {near[0]}/ to {wanted}/")
    here = [f"{name}/" for name in folders] + ([f"{count} images"] if (count := image_count(root)) else [])
    lies = f". Here lie {listing(here)}" if here else ""
    return lies + (f": {' and '.join(advice)}" if advice else "")


FOLDER = Dataset(
    name="folder",
    summary="any folder with images/, masks/ and classes.txt, read in place",
    open=_open,
)
