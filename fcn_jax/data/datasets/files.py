"""Files of a dataset's folders, without the hidden files that other programs leave there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fcn_jax.data.datasets import names
from fcn_jax.errors import DataError

_SYSTEM_FOLDERS = ("__MACOSX", "$RECYCLE.BIN", "lost+found")


def is_hidden(name: str) -> bool:
    """Whether it is a file that other programs leave behind: `.DS_Store`, `__MACOSX`, `a~`."""
    return name.startswith((".", "~$", "@ea")) or name.endswith("~") or name in _SYSTEM_FOLDERS


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """The files and folders in a folder, in order of name, without hidden ones.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            visible = [entry for entry in found if not is_hidden(entry.name)]
    except OSError as error:
        raise DataError(
            f"{folder}: cannot read the folder ({error.strerror}); check its permissions"
        ) from error
    return sorted(visible, key=lambda entry: entry.name)


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, in order."""
    return [entry.name for entry in entries(folder) if entry.is_dir()]


def file_names(folder: Path, suffixes: Sequence[str] | None = None) -> list[str]:
    """The names of the files in a folder, in order.

    Args:
        folder: an existing folder.
        suffixes: the endings to take, in lower case; None takes all files.
    """
    found = [entry.name for entry in entries(folder) if not entry.is_dir()]
    return found if suffixes is None else [n for n in found if names.ending(n) in suffixes]


def image_count(folder: Path) -> int:
    """The number of image files in a folder, without its subfolders."""
    return len(file_names(folder, names.IMAGE_SUFFIXES))


def has_images(
    folder: Path, depth: int = 3, suffixes: Sequence[str] = names.NAMED_SUFFIXES
) -> bool:
    """Whether a folder, or one at most `depth` levels below it, holds files with these endings."""
    return bool(file_names(folder, suffixes)) or (
        depth > 0
        and any(has_images(folder / name, depth - 1, suffixes) for name in subfolders(folder))
    )


def with_images(folder: Path) -> list[str]:
    """The subfolders of a folder that hold images or masks, in order."""
    return [name for name in subfolders(folder) if has_images(folder / name)]


class Files(dict[str, Path]):
    """The files of a folder by name without ending, in order of name.

    Attributes:
        folder: the folder, which may be missing.
    """

    def __init__(self, folder: Path, files: Mapping[str, Path] | None = None) -> None:
        """Take files by name."""
        super().__init__(files or {})
        self.folder = folder


def files_by_stem(folder: Path, suffixes: Sequence[str], *, nested: bool = False) -> Files:
    """The files of a folder by name without ending, without hidden files.

    Args:
        folder: a folder; a missing one counts as empty.
        suffixes: the endings to take, in lower case.
        nested: whether to take the files of subfolders too. Their names begin with the subfolder's
            name: `city/a`.

    Raises:
        DataError: two files differ only in their ending, or the folder cannot be read.
    """
    found = Files(folder)
    for name, path in _files(folder, nested) if folder.is_dir() else ():
        if names.ending(name) not in suffixes:
            continue
        key = os.path.splitext(name)[0]
        if key in found:
            raise DataError(
                f"{path.parent} holds both {found[key].name} and {path.name}; keep one, images and "
                "masks are matched by name"
            )
        found[key] = path
    return found


def _files(
    folder: Path, nested: bool, above: frozenset[Path] = frozenset()
) -> Iterator[tuple[str, Path]]:
    """The files of a folder, and with `nested` of its subfolders, by name."""
    here = above | {folder.resolve()}
    for entry in entries(folder):
        path = folder / entry.name
        if not entry.is_dir():
            yield entry.name, path
        elif nested and path.resolve() not in here:  # a link may lead back to a folder above it
            for name, file in _files(path, nested, here):
                yield f"{entry.name}/{name}", file


def mixed_masks(folder: Path) -> list[str]:
    """The mask files among the images in a folder: `a_mask.png`, or `a.png`, with `a.jpg`."""
    files = file_names(folder, names.NAMED_SUFFIXES) if folder.is_dir() else []
    stems = {name: names.folded(names.stem(name)) for name in files}
    images = set(stems.values())
    photos = {key for name, key in stems.items() if names.ending(name) in (".jpg", ".jpeg")}
    return [name for name, key in stems.items() if names.image_of(key) in images] or [
        name for name, key in stems.items() if names.ending(name) == ".png" and key in photos
    ]


def contents_of(files: Files, *, masks: bool = False) -> str:
    """A phrase on the contents of a folder, for a message.

    Args:
        files: the files of the folder that are images, or masks.
        masks: whether it should hold masks.
    """
    folder = files.folder
    if not folder.is_dir():
        return f"there is no folder {folder}"
    known = {path.name for path in files.values()}
    others = Counter(names.ending(n) or "no ending" for n in file_names(folder) if n not in known)
    said = []
    if files:
        first = next(iter(files.values())).name
        said.append(f"{folder.name}/ holds {len(files)} such files, as {first}")
    for found, count in others.most_common(3):
        lossy = masks and found in (".jpg", ".jpeg", ".webp")
        said.append(
            f"{count} {'file ends' if count == 1 else 'files end'} in {found}"
            f"{', which a mask must not be' if lossy else ''}"
        )
    for name in subfolders(folder):
        if count := image_count(folder / name):
            said.append(f"the subfolder {name}/ holds {count} images")
    return "; ".join(said[:6]) or f"{folder.name}/ is empty"
