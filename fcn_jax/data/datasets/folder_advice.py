"""Advice for a folder without images/ or masks/: what to move, to rename, or to pass instead."""

from __future__ import annotations

import re
from pathlib import Path

from fcn_jax.data.datasets.directory import SPLIT_NAMES
from fcn_jax.data.datasets.files import has_images, image_count, mixed_masks, subfolders
from fcn_jax.data.datasets.names import IMAGE_SUFFIXES, MASK_SUFFIXES, ending
from fcn_jax.data.datasets.recognize import looks_like
from fcn_jax.data.datasets.voc import find_devkit
from fcn_jax.errors import DataError, listing

_IMAGE_FOLDERS = (
    "images", "image", "imgs", "img", "img_dir", "image_dir", "imgs_dir", "images_dir",
    "img_folder", "jpegimages", "photos", "pictures", "leftimg8bit", "rgb", "color", "input",
    "inputs", "original", "originals", "original_images", "raw", "x", "data",
)  # fmt: skip
_MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "ann_dir", "mask_dir", "label_dir", "annotations",
    "annotation", "ann", "anns", "annots", "segmentationclass", "segmentationclasspng",
    "segmentationclassraw", "segmentation", "segmentations", "gt", "gts", "ground_truth",
    "groundtruth", "gtfine", "gtcoarse", "seg", "segs", "label_images", "label_images_semantic",
    "targets", "target", "y",
)  # fmt: skip
# Annotation tools write arrays next to the pictures of the same masks.
_PICTURES = tuple(suffix for suffix in MASK_SUFFIXES if suffix != ".npy")
_KINDS = {
    "images": (_IMAGE_FOLDERS, IMAGE_SUFFIXES),
    "masks": (_MASK_FOLDERS, _PICTURES),
}
"""Kind -> names of folders in lower case, the likeliest first, and endings of their files."""

_SPLIT_FOLDERS = {
    "masks": re.compile(
        r"(?P<split>[a-z]+?)[_\- ]?(?:masks?|labels?|annot|annots|annotations?|gt|ground_?truth"
        r"|seg|segmentations?|targets?)"
        r"|(?:masks?|labels?|annotations?|gt|ground_?truth|seg|targets?)[_\- ](?P<other>[a-z]+)"
    ),
    "images": re.compile(
        r"(?P<split>[a-z]+?)(?:[_\- ]?(?:images?|imgs?))?|(?:images?|imgs?)[_\- ](?P<other>[a-z]+)"
    ),
}
"""Kind -> names of folders that hold one split, such as train_labels."""

_TOOL_LISTS = ("labelmap.txt", "class_names.txt", "classes.txt", "labels.txt")
_OTHER_LABELS = {
    ".json": ", as COCO's or labelme's polygons",
    ".xml": ", as VOC's boxes",
    ".txt": ", as YOLO's",
    ".npy": "",
}


def advice_for(root: Path) -> str:
    """The contents of a folder without images/ or masks/, with advice; to end an error message."""
    count = image_count(root)
    here = [f"{name}/" for name in subfolders(root)] + ([f"{count} images"] if count else [])
    lies = f". Here lie {listing(here)}" if here else ""
    known = looks_like(root, without="voc2012")
    if known:
        return f"{lies}. {known}"
    is_voc = find_devkit(root) or any((root / n).is_dir() for n in ("VOCdevkit", "VOC2012"))
    if is_voc and not any((root / name).is_file() for name in _TOOL_LISTS):
        other = _renames(root)
        also = f", or for other classes {other}" if other else ""
        return f". {root} looks like PASCAL VOC: use the dataset voc2012{also}"
    try:
        advice = _moves(root) or _inside(root) or _from_one_folder(root) or _renames(root)
        unfit = "" if "masks/" in advice else _other_labels(root)
    except DataError:  # a folder cannot be read; then there is no advice
        advice = unfit = ""
    return lies + (f": {advice}" if advice else "") + (f". {unfit}" if unfit else "")


def _moves(root: Path) -> str:
    """Moves and renames for a folder with both images and masks in folders of their own."""
    moves = [
        f"{images}/ to images/{split}/ and {masks}/ to masks/{split}/"
        for split, images, masks in _by_split(root) or _by_split_names(root)
    ]
    if moves:
        return f"move {', '.join(moves)}"
    renames = _renames(root)
    complete = all(f"to {kind}/" in renames or (root / kind).is_dir() for kind in _KINDS)
    return renames if complete or (root / "masks").is_dir() else ""


def _by_split(root: Path) -> list[tuple[str, str, str]]:
    """Splits whose folder holds images and masks, as in train/images and train/masks.

    Returns:
        The split, the folder of its images, and the folder of its masks.
    """
    found = []
    for name in subfolders(root):
        if name.lower() in SPLIT_NAMES:
            images, masks = (_candidates(root / name, kind) for kind in _KINDS)
            if images and masks:
                found.append((name, f"{name}/{images[0]}", f"{name}/{masks[0]}"))
    return found


def _by_split_names(root: Path) -> list[tuple[str, str, str]]:
    """As `_by_split`, for splits in folders such as train/ and train_labels/."""
    found: dict[str, dict[str, str]] = {kind: {} for kind in _KINDS}
    for name in subfolders(root):
        for kind, pattern in _SPLIT_FOLDERS.items():
            parts = pattern.fullmatch(name.lower())
            split = parts and (parts["split"] or parts["other"])
            if split in SPLIT_NAMES and has_images(root / name, suffixes=_KINDS[kind][1]):
                found[kind][split] = name
                break
    images, masks = found["images"], found["masks"]
    return [(split, name, masks[split]) for split, name in images.items() if split in masks]


def _candidates(folder: Path, kind: str) -> list[str]:
    """The subfolders that by name and contents hold images, or masks; the likeliest first."""
    usual, suffixes = _KINDS[kind]
    ranks = {}
    for name in subfolders(folder):
        # The last word of a longer name counts too, as in CameraRGB and CameraSeg.
        words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
        is_mask = kind == "images" and set(words) & set(_MASK_FOLDERS)
        if name.lower() in usual:
            ranks[name] = usual.index(name.lower())
        elif words and words[-1] in usual and not is_mask:
            ranks[name] = len(usual)
    found = [name for name in ranks if has_images(folder / name, suffixes=suffixes)]
    return sorted(found, key=lambda name: ranks[name])


def _renames(root: Path) -> str:
    """The folders to rename to images/ and masks/."""
    found = {kind: _candidates(root, kind) for kind in _KINDS if not (root / kind).is_dir()}
    return " and ".join(f"rename {near[0]}/ to {kind}/" for kind, near in found.items() if near)


def _inside(root: Path) -> str:
    """The folder to pass if one of them holds both images and masks."""
    for folder in (root / name for name in subfolders(root)):
        if {"images", "masks"} <= set(subfolders(folder)):
            return f"{folder} holds both: pass --data {folder}"
        if moves := _moves(folder):
            return f"pass --data {folder} and in it {moves}"
    return ""


def _from_one_folder(root: Path) -> str:
    """Moves for images and masks in one folder."""
    said = []
    for name in ("", *subfolders(root)):
        masks = mixed_masks(root / name)
        if masks:
            to = f"{name}/" if name.lower() in SPLIT_NAMES else ""
            images = "" if name == "images" else f"the images to images/{to} and "
            said.append(
                f"{len(masks)} masks lie among the images{f' of {name}/' if name else ''} "
                f"({listing(masks, 2)}): move {images}the masks to masks/{to}"
            )
    return "; ".join(said[:4])


def _other_labels(root: Path) -> str:
    """Advice on a folder that is named like one of masks, but holds labels of another kind."""
    if (root / "masks").is_dir():
        return ""
    folders = subfolders(root)
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    below = [f"{name}/{other}" for name in splits for other in subfolders(root / name)]
    for name in [*folders, *below]:
        folder = root / name
        if folder.name.lower() not in _MASK_FOLDERS or has_images(folder, suffixes=_PICTURES):
            continue
        paths = sorted(folder.rglob("*"))[:2000]
        endings = {ending(path.name) for path in paths if path.is_file()}
        for other, tool in _OTHER_LABELS.items():
            if other in endings:
                return (
                    f"{name}/ holds {other} files{tool}, and no mask images; "
                    "export the annotations as PNG masks, whose values are the labels, into masks/"
                )
    return ""
