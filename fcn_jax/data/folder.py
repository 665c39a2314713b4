"""Any folder of images and masks, read in place.

    DIR/
      classes.txt          one class a line, in the order of the labels: `name`, or `name R G B`
      images/ID.jpg        JPEG, PNG, BMP, TIFF or WebP
      masks/ID.png         indexed or gray PNG, BMP, TIFF, GIF or lossless WebP whose values are labels; or in colors where
                           every class has its color
      splits/train.txt     optional: the IDs of a split, one a line; as many files as there are splits

Instead of `splits/`, each split may have subfolders: `images/train/ID.jpg` and
`masks/train/ID.png`, or one level deeper as in `images/train/CITY/ID.jpg`. Lists are also found in
`lists/`, `split/`, `ImageSets/` and `ImageSets/Segmentation/`, and as `train.txt` in the folder
itself, which is said; lists that cannot be used are refused. With neither, the images are divided
into `train` and `val` by a hash of their names, about nine to one: the same on every machine, and
adding images moves none from one side to the other.

The list of classes may be one that an annotation tool writes (`fcn_jax.data.labels.class_list`). In
`classes.txt` blank lines and lines that start with `#` are skipped. Lines named `void` are stored
values or colors that neither the loss nor a metric counts; 255 is void, too, unless it is a class.
What an ID in a split file may be, `fcn_jax.data.datasets.directory.match` says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fcn_jax.data.datasets.directory import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    SPLIT_NAMES,
    DirectorySource,
    check_split,
    entries,
    files_by_stem,
    has_images,
    image_count,
    match,
    mixed_masks,
    read_ids,
    require_root,
)
from fcn_jax.data.labels.class_list import Ids, find_class_list
from fcn_jax.data.voc import find_devkit
from fcn_jax.errors import DataError, listing
from fcn_jax.plugins.api import Dataset, Source

_NO_SPLITS = (
    "readme",
    "license",
    "license",
    "notes",
    "changelog",
    "classes",
    "labels",
    "labelmap",
    "requirements",
    "info",
)
"""Names of text files that are no lists of images."""

_LIST_FOLDERS = (
    "split",
    "lists",
    "list",
    "imagesets",
    "imageset",
    "image_sets",
    "filelists",
    "file_lists",
    "split_lists",
    "subsets",
)
_LIST_SUFFIXES = ("", ".csv", ".tsv", ".lst", ".list", ".json", ".yaml", ".yml", ".xlsx", ".xml")

_ALSO_IMAGES = (
    *(
        "images",
        "image",
        "imgs",
        "img",
        "img_dir",
        "image_dir",
        "imgs_dir",
        "images_dir",
        "img_folder",
        "jpegimages",
        "photos",
    ),
    *(
        "pictures",
        "leftimg8bit",
        "rgb",
        "color",
        "input",
        "inputs",
        "original",
        "originals",
        "original_images",
        "raw",
        "x",
        "data",
    ),
)
_ALSO_MASKS = (
    *(
        "masks",
        "mask",
        "labels",
        "label",
        "ann_dir",
        "mask_dir",
        "label_dir",
        "annotations",
        "annotation",
        "ann",
        "anns",
        "annots",
    ),
    *(
        "segmentationclass",
        "segmentationclasspng",
        "segmentationclassraw",
        "segmentation",
        "segmentations",
        "gt",
        "gts",
        "ground_truth",
    ),
    *(
        "groundtruth",
        "gtfine",
        "gtcoarse",
        "seg",
        "segs",
        "label_images",
        "label_images_semantic",
        "targets",
        "target",
        "y",
    ),
)
"""Names of folders, in lower case, that hold images or masks."""

_SPLIT_AND_MASKS = re.compile(
    r"(?P<split>[a-z]+?)[_\- ]?(?:masks?|labels?|annot|annots|annotations?|gt|ground_?truth|seg|segmentations?|targets?)"
    r"|(?:masks?|labels?|annotations?|gt|ground_?truth|seg|targets?)[_\- ](?P<other>[a-z]+)"
)
_SPLIT_AND_IMAGES = re.compile(
    r"(?P<split>[a-z]+?)(?:[_\- ]?(?:images?|imgs?))?|(?:images?|imgs?)[_\- ](?P<other>[a-z]+)"
)


def hash_split(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Divide names into "train" and "val": val takes those whose SHA-256's first eight bytes are divisible by ten.

    Where that leaves a side of two or more images empty, the name of lowest hash goes to val, or
    that of highest to train.

    Args:
        names: image names without ending.

    Returns:
        The names of each split, in the order given.
    """
    hashes = {
        name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names
    }
    val = {name for name, value in hashes.items() if value % 10 == 0}
    if len(hashes) > 1 and not val:
        val = {min(hashes, key=hashes.__getitem__)}
    elif len(hashes) > 1 and len(val) == len(hashes):
        val.remove(max(hashes, key=hashes.__getitem__))
    return {
        "train": tuple(name for name in hashes if name not in val),
        "val": tuple(name for name in hashes if name in val),
    }


def _open(root: Path | None, split: str) -> Source:
    root = require_root(root, "folder", "images/, masks/ and classes.txt")
    lacking = [f"{name}/" for name in ("images", "masks") if not (root / name).is_dir()]
    if lacking:
        raise DataError(
            f"{root}: {listing(lacking)} missing here; a folder dataset holds images/, masks/ and classes.txt{_what_lies(root)}"
        )
    images, masks = root / "images", root / "masks"
    lists, notes = _find_lists(root, split)
    if lists:
        check_split(split, lists, next(iter(lists.values())).parent)
        nested = image_count(images) == 0
        found_images = files_by_stem(images, IMAGE_SUFFIXES, nested=True)
        found_masks = files_by_stem(
            masks, MASK_SUFFIXES, nested=nested or not has_images(masks, 0, MASK_SUFFIXES)
        )
        ids: Sequence[str] = read_ids(lists[split])
    else:
        subfolders, flat, said = _layout(images, masks, split)
        notes += said
        if not flat:
            check_split(split, subfolders, images)
            images, masks = images / split, masks / split
        nested = not flat and image_count(images) == 0
        found_images = files_by_stem(images, IMAGE_SUFFIXES, nested=nested)
        found_masks = files_by_stem(
            masks,
            MASK_SUFFIXES,
            nested=nested or (not flat and not has_images(masks, 0, MASK_SUFFIXES)),
        )
        ids = tuple(found_images)
        if nested and ids:
            folders = list(dict.fromkeys(name.rpartition("/")[0] for name in ids))
            notes.append(
                f"split '{split}': images are taken from the subfolders {listing(folders)} of {images}"
            )
        elif not flat:
            below = [
                entry.name
                for entry in entries(images)
                if entry.is_dir() and has_images(images / entry.name)
            ]
            notes += (
                [f"{images}: the images in the subfolders {listing(below)} are not used"]
                if below
                else []
            )
        if flat:
            parts = hash_split(found_images)
            check_split(split, parts, root)
            ids = parts[split]
            notes.append(
                f"images are divided by a hash of their names into train ({len(parts['train'])}) and val ({len(parts['val'])})"
            )
        lone = [name for name in found_masks if name not in found_images]
        if lone and any(name in found_masks for name in found_images):
            notes.append(f"{len(lone)} masks in {masks} have no image: {listing(lone)}")
    classes = find_class_list(root, ids=_ids_stored(found_masks))
    records = match(
        ids,
        found_images,
        found_masks,
        split=split,
        where=root,
        image_folder=images,
        mask_folder=masks,
    )
    return DirectorySource(
        classes.classes, records, labels=classes.labels, notes=(*classes.notes, *notes)
    )


def _find_lists(root: Path, split: str) -> tuple[dict[str, Path], list[str]]:
    """The split lists by name, and what is to be said about them.

    Lists lie in splits/, in any case. Where there is none and `images/` has no subfolder of the
    split's name, lists in one other usual place are read: `ImageSets/Segmentation/` as in VOC,
    `lists/`, or `train.txt` in the dataset's folder.

    Raises:
        DataError: there are lists in several places, or files that should be lists but do not end
            in .txt.
    """
    own = [
        entry.name for entry in entries(root) if entry.is_dir() and entry.name.lower() == "splits"
    ]
    if len(own) > 1 and "splits" not in own:
        raise DataError(
            f"{root} holds {listing(f'{name}/' for name in own)}; keep one of them, named splits/"
        )
    folder = root / ("splits" if "splits" in own or not own else own[0])
    lists, others = _split_lists(folder)
    has_subfolder = (root / "images" / split).is_dir()
    if (
        others
        and split not in lists
        and (not lists or any(_first_word(name) == split.lower() for name in others))
    ):
        said = f"{root}: {folder.name}/ holds {listing(others)}; lists end in .txt, hold one image name a line and lie in splits/ itself"
        if not has_subfolder:
            raise DataError(f"{said}: convert them, or remove them")
        return lists, [said]
    if lists:
        return lists, []
    places = {f"{name}/": _split_lists(root / name) for name in _list_folders(root)}
    places[""] = (
        {name: path for name, path in _split_lists(root)[0].items() if name.lower() in SPLIT_NAMES},
        [],
    )
    readable = {
        place: found
        for place, (found, _) in places.items()
        if split in found or SPLIT_NAMES & {n.lower() for n in found}
    }
    # Tables in the dataset's folder itself, such as train.csv, often describe the images instead.
    refused = [
        f"{place}{name}"
        for place, (found, others) in places.items()
        if not found
        for name in others
    ]
    unused = [
        f"{place}{path.name}"
        for place, (found, _) in places.items()
        if place not in readable
        for path in found.values()
    ]
    unused += _tables(root)
    files = [f"{place}{path.name}" for place, found in readable.items() for path in found.values()]
    if has_subfolder:
        files, refused, unused = [], [], [*files, *refused, *unused]
    notes = (
        [f"{listing(unused)} in {root}: not used; a list of a split is splits/SPLIT.txt"]
        if unused
        else []
    )
    if len(readable) == 1 and files and not refused:
        return next(iter(readable.values())), [
            f"the lists of splits are {listing(files)} in {root}",
            *notes,
        ]
    if files or refused:
        what = (
            "keep those of one place"
            if files
            else "convert them to text with one image name a line"
        )
        raise DataError(
            f"{root} holds {listing([*files, *refused])}, but lists of splits lie in splits/ and end in .txt; {what} and move them to "
            "splits/SPLIT.txt"
        )
    return {}, notes


def _list_folders(root: Path) -> list[str]:
    """Folders other than splits/ in which lists of splits usually lie."""
    found = [
        entry.name
        for entry in entries(root)
        if entry.is_dir() and entry.name.lower() in _LIST_FOLDERS
    ]
    below = [
        f"{name}/{entry.name}"
        for name in found
        for entry in entries(root / name)
        if entry.is_dir() and entry.name.lower() == "segmentation"
    ]
    # VOC's other folders, as Main/, hold lists for other tasks.
    return [
        name for name in found if not any(folder.startswith(f"{name}/") for folder in below)
    ] + below


def _split_lists(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """A folder's lists by name, and its other files that may be meant as lists."""
    if not folder.is_dir():
        return {}, []
    lists, others = {}, []
    for entry in entries(folder):
        path = folder / entry.name
        if path.stem.lower() in _NO_SPLITS:
            continue
        if entry.is_dir():
            others += [
                f"{entry.name}/{file.name}"
                for file in entries(path)
                if file.name.lower().endswith((".txt", ".csv"))
            ]
        elif path.suffix.lower() == ".txt":
            lists[path.stem] = path
        elif path.suffix.lower() in _LIST_SUFFIXES:
            others.append(entry.name)
    return lists, others


def _tables(root: Path) -> list[str]:
    """Files in the dataset's folder that are named as a split but are no text file, such as train.csv."""
    return [
        entry.name
        for entry in entries(root)
        if not entry.is_dir()
        and _first_word(entry.name) in SPLIT_NAMES
        and Path(entry.name).suffix.lower() in _LIST_SUFFIXES
    ]


def _first_word(name: str) -> str:
    return Path(name).name.partition(".")[0].lower()


def _layout(images: Path, masks: Path, split: str) -> tuple[list[str], bool, list[str]]:
    """The splits that have subfolders, whether the images lie in no subfolder, and what is to be said about it."""
    with_images = [
        entry.name
        for entry in entries(images)
        if entry.is_dir() and has_images(images / entry.name)
    ]
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
        said = (
            [f"{files} images in {images} itself belong to no split and are not used"]
            if files
            else []
        )
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
    said = (
        [f"{images}: the images in the subfolders {listing(ignored)} are not used"]
        if ignored
        else []
    )
    return [], True, said


def _ids_stored(masks: Iterable[str]) -> Ids | None:
    """Which of Cityscapes' numbers masks store, by their names."""
    endings = {
        ending
        for name in masks
        for ending in ("labelTrainIds", "labelIds")
        if name.endswith(ending)
    }
    if endings == {"labelTrainIds"}:
        return "trainId"
    return "id" if endings == {"labelIds"} else None


def _what_lies(root: Path) -> str:
    """What a folder without images/ or masks/ holds instead, as advice."""
    folders = [entry.name for entry in entries(root) if entry.is_dir()]
    count = image_count(root)
    here = [f"{name}/" for name in folders] + ([f"{count} images"] if count else [])
    lies = f". Here lie {listing(here)}" if here else ""
    if (root / "trainannot").is_dir():
        return f". {root} looks like CamVid: use the dataset camvid"
    if (
        find_devkit(root) is not None
        or (root / "VOCdevkit").is_dir()
        or (root / "VOC2012").is_dir()
    ):
        exported = [
            name
            for name in ("labelmap.txt", "class_names.txt", "classes.txt", "labels.txt")
            if (root / name).is_file()
        ]
        if not exported:
            other = _renames(root, folders)
            return f". {root} looks like PASCAL VOC: use the dataset voc2012" + (
                f", or for other classes {other}" if other else ""
            )
    try:
        advice = (
            _moves(root, folders)
            or _inside(root, folders)
            or _from_one_folder(root, folders)
            or _renames(root, folders)
        )
        unfit = "" if "masks/" in advice else _no_masks(root, folders)
    except DataError:  # of a folder that cannot be read; what is missing is said without advice
        advice = unfit = ""
    return lies + (f": {advice}" if advice else "") + (f". {unfit}" if unfit else "")


def _moves(root: Path, folders: Sequence[str]) -> str:
    """What to move or rename where the folder holds both images and masks in folders of their own."""
    renames = _renames(root, folders)
    complete = (root / "masks").is_dir() or (
        ("to images/" in renames or (root / "images").is_dir()) and "to masks/" in renames
    )
    return (
        _by_split(root, folders)
        or _from_pairs_of_folders(root, folders)
        or (renames if complete else "")
    )


def _candidates(folder: Path, names: Sequence[str], kind: str) -> list[str]:
    """The subfolders that by their names and contents hold images, or masks; the likeliest first."""
    also, suffixes = (
        (_ALSO_IMAGES, IMAGE_SUFFIXES) if kind == "images" else (_ALSO_MASKS, MASK_SUFFIXES)
    )
    ranks = {}
    for name in names:
        # The last word of a longer name counts, too, as in CameraRGB and CameraSeg.
        words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
        if name.lower() in also:
            ranks[name] = also.index(name.lower())
        elif (
            words and words[-1] in also and not (kind == "images" and set(words) & set(_ALSO_MASKS))
        ):
            ranks[name] = len(also)
    found = [name for name in ranks if has_images(folder / name, suffixes=suffixes)]
    return sorted(found, key=lambda name: ranks[name])


def _renames(root: Path, folders: Sequence[str]) -> str:
    """Which folders to rename to images/ and masks/."""
    advice = []
    for wanted in ("images", "masks"):
        near = [] if (root / wanted).is_dir() else _candidates(root, folders, wanted)
        if near:
            advice.append(f"rename {near[0]}/ to {wanted}/")
    return " and ".join(advice)


def _by_split(root: Path, folders: Sequence[str]) -> str:
    """What to move where each split has a folder that holds its images and its masks, as in train/images and train/masks."""
    found = []
    for name in folders:
        below = [entry.name for entry in entries(root / name) if entry.is_dir()]
        images, masks = (_candidates(root / name, below, kind) for kind in ("images", "masks"))
        if name.lower() in SPLIT_NAMES and images and masks:
            found.append((name, images[0], masks[0]))
    if not found:
        return ""
    moves = [
        f"{name}/{images}/ to images/{name}/ and {name}/{masks}/ to masks/{name}/"
        for name, images, masks in found
    ]
    return f"move {', '.join(moves)}"


def _inside(root: Path, folders: Sequence[str]) -> str:
    """The folder to pass where one holds both images and masks."""
    for name in folders:
        below = [entry.name for entry in entries(root / name) if entry.is_dir()]
        if {"images", "masks"} <= set(below):
            return f"{root / name} holds both: pass --data {root / name}"
        moves = _moves(root / name, below)
        if moves:
            return f"pass --data {root / name} and in it {moves}"
    return ""


def _from_pairs_of_folders(root: Path, folders: Sequence[str]) -> str:
    """What to move where splits lie in folders such as train/ and train_labels/."""
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    for name in folders:
        for pattern, found, suffixes in (
            (_SPLIT_AND_MASKS, masks, MASK_SUFFIXES),
            (_SPLIT_AND_IMAGES, images, IMAGE_SUFFIXES),
        ):
            parts = pattern.fullmatch(name.lower())
            split = parts and (parts["split"] or parts["other"])
            if split in SPLIT_NAMES and has_images(root / name, suffixes=suffixes):
                found[split] = name
                break
    moves = [
        f"{images[split]}/ to images/{split}/ and {masks[split]}/ to masks/{split}/"
        for split in images
        if split in masks
    ]
    return f"move {', '.join(moves)}" if moves else ""


def _from_one_folder(root: Path, folders: Sequence[str]) -> str:
    """What to move where images and masks lie in one folder."""
    said = []
    for name in ("", *folders):
        masks = mixed_masks(root / name)
        if masks:
            to = name if name.lower() in SPLIT_NAMES else ""
            wanted = [f"{kind}/{to}/" if to else f"{kind}/" for kind in ("images", "masks")]
            lie = f"{len(masks)} masks lie among the images{f' of {name}/' if name else ''} ({listing(masks, 2)})"
            images = "" if name == "images" else f"the images to {wanted[0]} and "
            said.append(f"{lie}: move {images}the masks to {wanted[1]}")
    return "; ".join(said[:4])


def _no_masks(root: Path, folders: Sequence[str]) -> str:
    """What is said of folders that are named as if they held masks, but hold another kind of labels."""
    if (root / "masks").is_dir():
        return ""
    below = [
        f"{name}/{entry.name}"
        for name in folders
        if name.lower() in SPLIT_NAMES
        for entry in entries(root / name)
        if entry.is_dir()
    ]
    for name in [*folders, *below]:
        if Path(name).name.lower() not in _ALSO_MASKS or has_images(
            root / name, suffixes=MASK_SUFFIXES
        ):
            continue
        endings = {
            path.suffix.lower()
            for path in sorted((root / name).rglob("*"))[:2000]
            if path.is_file()
        }
        for ending, tool in (
            (".json", "as COCO's or labelme's polygons"),
            (".xml", "as VOC's boxes"),
            (".txt", "as YOLO's"),
            (".npy", ""),
        ):
            if ending in endings:
                return (
                    f"{name}/ holds {ending} files{tool and f', {tool}'}, and no mask images; export the annotations as PNG masks, "
                    "whose values are the labels, into masks/"
                )
    return ""


FOLDER = Dataset(
    name="folder",
    summary="any folder with images/, masks/ and classes.txt, read in place",
    open=_open,
)
