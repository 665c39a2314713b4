"""The lists of a folder dataset's splits: `splits/`, and other places in which tools write them."""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.datasets.directory import SPLIT_NAMES
from fcn_jax.data.datasets.files import entries, file_names, subfolders
from fcn_jax.errors import DataError, listing

_NOT_LISTS = (
    "readme", "license", "licence", "notes", "changelog", "classes", "labels", "labelmap",
    "requirements", "info",
)  # fmt: skip
"""Names, without ending, of text files that are not lists of images."""

_FOLDERS = (
    "split", "lists", "list", "imagesets", "imageset", "image_sets", "filelists", "file_lists",
    "split_lists", "subsets",
)  # fmt: skip
_SUFFIXES = ("", ".csv", ".tsv", ".lst", ".list", ".json", ".yaml", ".yml", ".xlsx", ".xml")
"""Endings of files that may be meant as lists, in addition to .txt."""


def find_split_lists(root: Path, split: str) -> tuple[dict[str, Path], list[str]]:
    """Find the split lists of a dataset.

    Lists lie in splits/, in any case. If there is none and `images/` has no subfolder of the
    split's name, lists in one other usual place are read: `ImageSets/Segmentation/` as in VOC,
    `lists/`, or `train.txt` in the dataset's folder.

    Args:
        root: the dataset's folder.
        split: the name of the split.

    Returns:
        The lists by the name of their split, and notes.

    Raises:
        DataError: there are lists in several places, or files that seem to be lists but do not end
            in .txt.
    """
    own = [name for name in subfolders(root) if name.lower() == "splits"]
    if len(own) > 1 and "splits" not in own:
        raise DataError(
            f"{root} holds {listing(f'{name}/' for name in own)}; keep one of them, named splits/"
        )
    folder = root / ("splits" if "splits" in own or not own else own[0])
    lists, others = _lists_in(folder)
    has_subfolder = (root / "images" / split).is_dir()
    meant = not lists or any(_first_word(name) == split.lower() for name in others)
    if others and split not in lists and meant:
        said = (
            f"{root}: {folder.name}/ holds {listing(others)}; lists end in .txt, hold one image "
            "name per line and lie in splits/ itself"
        )
        if not has_subfolder:
            raise DataError(f"{said}: convert them, or remove them")
        return lists, [said]
    if lists:
        return lists, []
    return _lists_elsewhere(root, split, has_subfolder)


def _lists_elsewhere(
    root: Path, split: str, has_subfolder: bool
) -> tuple[dict[str, Path], list[str]]:
    readable: dict[str, dict[str, Path]] = {}
    refused, unused = [], []
    for place in (*_list_folders(root), ""):
        found, others = _lists_in(root / place)
        if not place:
            # Tables in the dataset's folder itself, such as train.csv, often describe the images.
            found = {name: path for name, path in found.items() if name.lower() in SPLIT_NAMES}
            others = []
        if split in found or SPLIT_NAMES & {name.lower() for name in found}:
            readable[place] = found
        elif found:
            unused += [f"{place}{path.name}" for path in found.values()]
        else:
            refused += [f"{place}{name}" for name in others]
    unused += [n for n in file_names(root, _SUFFIXES) if _first_word(n) in SPLIT_NAMES]
    files = [f"{place}{path.name}" for place, found in readable.items() for path in found.values()]
    if has_subfolder:
        files, refused, unused = [], [], [*files, *refused, *unused]
    said = f"{listing(unused)} in {root}: not used; a list of a split is splits/SPLIT.txt"
    notes = [said] if unused else []
    if len(readable) == 1 and files and not refused:
        (lists,) = readable.values()
        return lists, [f"the lists of splits are {listing(files)} in {root}", *notes]
    if files or refused:
        convert = "convert them to text with one image name per line"
        advice = "keep those of one place" if files else convert
        raise DataError(
            f"{root} holds {listing([*files, *refused])}, but lists of splits lie in splits/ and "
            f"end in .txt; {advice} and move them to splits/SPLIT.txt"
        )
    return {}, notes


def _list_folders(root: Path) -> list[str]:
    """Folders other than splits/ in which lists of splits usually lie."""
    found = []
    for name in subfolders(root):
        if name.lower() in _FOLDERS:
            # VOC's other folders, as Main/, hold lists for other tasks.
            below = [n for n in subfolders(root / name) if n.lower() == "segmentation"]
            found += [f"{name}/{folder}/" for folder in below] or [f"{name}/"]
    return found


def _lists_in(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """A folder's lists by name, and its other files that may be meant as lists."""
    lists: dict[str, Path] = {}
    others: list[str] = []
    for entry in entries(folder) if folder.is_dir() else ():
        path = folder / entry.name
        if path.stem.lower() in _NOT_LISTS:
            continue
        if entry.is_dir():
            tables = [e.name for e in entries(path) if e.name.lower().endswith((".txt", ".csv"))]
            others += [f"{entry.name}/{name}" for name in tables]
        elif path.suffix.lower() == ".txt":
            lists[path.stem] = path
        elif path.suffix.lower() in _SUFFIXES:
            others.append(entry.name)
    return lists, others


def _first_word(name: str) -> str:
    return Path(name).name.partition(".")[0].lower()
