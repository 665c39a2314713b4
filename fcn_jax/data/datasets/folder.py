"""A dataset in any folder of images and masks, read in place.

    DIR/
      classes.txt       one class per line, in the order of the labels: `name`, or `name R G B`
      images/ID.jpg     JPEG, PNG, BMP, TIFF or WebP
      masks/ID.png      indexed or gray PNG, BMP, TIFF, GIF or lossless WebP whose values are the
                        labels; or in colors if every class has its color
      splits/train.txt  optional: the IDs of a split, one per line; one file for each split

Instead of `splits/`, each split may have subfolders: `images/train/ID.jpg` and
`masks/train/ID.png`, or one level deeper as in `images/train/CITY/ID.jpg`. Lists are also found in
`lists/`, `split/`, `ImageSets/` and `ImageSets/Segmentation/`, and as `train.txt` in the folder
itself, with a note; lists that cannot be used are errors. With neither, the images are divided into
`train` and `val` by a hash of their names, about four to one: in the same way on every machine, and
adding images moves no image from one side to the other.

The class list may be one that an annotation tool writes (`fcn_jax.data.labels.class_list`). In
`classes.txt` blank lines and lines that start with `#` are skipped. Lines named `void` give stored
values or colors that count neither in the loss nor in a metric; 255 is void too, unless it is a
class. `fcn_jax.data.datasets.matching.match` documents the IDs of a split list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fcn_jax.data.datasets import directory
from fcn_jax.data.datasets.files import (
    contents_of,
    has_images,
    image_count,
    subfolders,
    with_images,
)
from fcn_jax.data.datasets.folder_advice import advice_for
from fcn_jax.data.datasets.found_classes import found_classes
from fcn_jax.data.datasets.hash_split import hash_part, hash_split
from fcn_jax.data.datasets.split_lists import find_split_lists
from fcn_jax.data.labels.class_list import class_list_of, find_class_list, has_class_list
from fcn_jax.data.labels.class_list_entries import Ids
from fcn_jax.data.source import Source
from fcn_jax.errors import DataError, listing
from fcn_jax.plugins.api import Dataset


def _open(root: Path | None, split: str, lines: Sequence[str] | None = None) -> Source:
    root = directory.require_root(root, "folder", "images/, masks/ and classes.txt")
    images, masks = root / "images", root / "masks"
    lacking = [f"{folder.name}/" for folder in (images, masks) if not folder.is_dir()]
    if lacking:
        raise DataError(
            f"{root}: {listing(lacking)} missing here; a folder dataset holds images/, masks/ and "
            f"classes.txt{advice_for(root)}"
        )
    lists, notes = find_split_lists(root, split)
    flat = False
    if lists:
        directory.check_split(split, lists, next(iter(lists.values())).parent)
    else:
        splits, said = _split_subfolders(images, masks, split)
        notes += said
        flat = splits is None
        if splits is not None:
            directory.check_split(split, splits, images)
            images, masks = images / split, masks / split
    nested = not flat and image_count(images) == 0
    nested_masks = not flat and (nested or not has_images(masks, 0, directory.MASK_SUFFIXES))
    found_images = directory.files_by_stem(
        images, directory.IMAGE_SUFFIXES, nested=nested or bool(lists)
    )
    found_masks = directory.files_by_stem(masks, directory.MASK_SUFFIXES, nested=nested_masks)
    ids = tuple(found_images)
    if lists:
        ids = directory.read_ids(lists[split])
    elif nested and ids:
        folders = list(dict.fromkeys(name.rpartition("/")[0] for name in ids))
        notes.append(
            f"split '{split}': images are taken from the subfolders {listing(folders)} of {images}"
        )
    elif not flat:
        below = with_images(images)
        if below:
            notes.append(f"{images}: the images in the subfolders {listing(below)} are not used")
    else:
        ids = hash_part(found_images, split, root)
        parts = hash_split(found_images)
        sizes = " and ".join(f"{name} ({len(part)})" for name, part in parts.items())
        notes.append(f"images are divided by a hash of their names into {sizes}")
    lone = [name for name in found_masks if name not in found_images]
    if not lists and lone and any(name in found_masks for name in found_images):
        notes.append(f"{len(lone)} masks in {masks} have no image: {listing(lone)}")
    if lines is None:
        classes = find_class_list(root, ids=_stored_ids(found_masks))
    else:
        classes = class_list_of(lines)
    records = directory.match(ids, found_images, found_masks, split=split, where=root)
    return directory.DirectorySource(
        classes.classes, records, labels=classes.labels, notes=(*classes.notes, *notes)
    )


def _find_classes(root: Path | None) -> tuple[tuple[str, ...] | None, str]:
    """The lines of a class list that follows from the masks, and a note.

    (None, "") if the folder has a class list, or no masks/, which `_open` reports.
    """
    root = directory.require_root(root, "folder", "images/ and masks/")
    masks = directory.files_by_stem(root / "masks", directory.MASK_SUFFIXES, nested=True)
    if not (root / "masks").is_dir() or has_class_list(root, ids=_stored_ids(masks)):
        return None, ""
    if not masks:
        raise DataError(f"{root}: no masks: {contents_of(masks, masks=True)}")
    return found_classes(list(masks.values()), root)


def _split_subfolders(images: Path, masks: Path, split: str) -> tuple[list[str] | None, list[str]]:
    """The splits that have subfolders, or None if the images lie in no subfolder; and notes."""
    filled, with_masks = with_images(images), subfolders(masks)
    splits = [name for name in filled if name in with_masks]
    stray = [name for name in filled if name not in with_masks]
    files, flat_masks = image_count(images), image_count(masks)
    if files and flat_masks and split in splits:
        raise DataError(
            f"{images}: {files} images lie here and others in {split}/, and so do the masks; keep "
            "one, or list the images of each split in "
            f"{images.parent}/splits/{split}.txt"
        )
    notes = []
    if splits and not (files and flat_masks):
        if files:
            notes.append(f"{files} images in {images} itself belong to no split and are not used")
        if stray:
            notes.append(
                f"{images}: the subfolders {listing(stray)} hold images but {masks.name}/ has no "
                "such subfolders; they are not used"
            )
        return splits, notes
    if not files and stray:
        raise DataError(
            f"{masks}: the subfolders {listing(stray)} are missing here, which hold the images of "
            f"{images.name}/; masks of images/SPLIT/ lie in masks/SPLIT/"
        )
    if filled:
        unused = listing([*splits, *stray])
        notes.append(f"{images}: the images in the subfolders {unused} are not used")
    return None, notes


def _stored_ids(masks: Iterable[str]) -> Ids | None:
    """Which of Cityscapes' numbers masks store, by their names."""
    endings: dict[str, Ids] = {"labelTrainIds": "trainId", "labelIds": "id"}
    found = {ids for name in masks for ending, ids in endings.items() if name.endswith(ending)}
    return found.pop() if len(found) == 1 else None


FOLDER = Dataset(
    name="folder",
    summary="any folder with images/, masks/ and classes.txt, read in place",
    open=_open,
    open_with_classes=_open,
    find_classes=_find_classes,
)
