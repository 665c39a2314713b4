"""Files of a dataset's folders, without the hidden files that other programs leave there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fcn_jax.data.datasets import names
from fcn_jax.data.datasets.names import IMAGE_SUFFIXES, MASK_SUFFIXES, ending
from fcn_jax.errors import DataError


def is_hidden(name: str) -> bool:
    """Whether it is a file that other programs leave behind: `.DS_Store`, `__MACOSX`, `a~`."""
    return (
        name.startswith((".", "~$", "@ea"))
        or name.endswith("~")
        or name in ("__MACOSX", "$RECYCLE.BIN", "lost+found")
    )


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
    return [
        entry.name
        for entry in entries(folder)
        if (suffixes is None or ending(entry.name) in suffixes) and not entry.is_dir()
    ]


def image_count(folder: Path) -> int:
    """The number of image files in a folder, without its subfolders."""
    return len(file_names(folder, IMAGE_SUFFIXES))


def has_images(
    folder: Path, depth: int = 3, suffixes: Sequence[str] = MASK_SUFFIXES + IMAGE_SUFFIXES
) -> bool:
    """Whether a folder, or one at most `depth` levels below it, holds files with these endings."""
    return bool(file_names(folder, suffixes)) or (
        depth > 0
        and any(has_images(folder / name, depth - 1, suffixes) for name in subfolders(folder))
    )


def with_images(folder: Path) -> list[str]:
    """The subfolders of a folder that hold images or masks, in order."""
    return [name for name in subfolders(folder) if has_images(folder / name)]


def files_by_stem(
    folder: Path, suffixes: Sequence[str], *, nested: bool = False
) -> dict[str, Path]:
    """The files of a folder by name without ending, in order of name, without hidden files.

    Args:
        folder: a folder; a missing one counts as empty.
        suffixes: the endings to take, in lower case.
        nested: whether to take the files of subfolders too. Their names begin with the subfolder's
            name: `city/a`.

    Raises:
        DataError: two files differ only in their ending, or the folder cannot be read.
    """
    return _files_by_stem(folder, suffixes, nested, frozenset())


def _files_by_stem(
    folder: Path, suffixes: Sequence[str], nested: bool, above: frozenset[Path]
) -> dict[str, Path]:
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    for entry in entries(folder):
        path = folder / entry.name
        if entry.is_dir():
            here = above | {folder.resolve()} if nested else above
            # A link may lead back to a folder above it.
            if nested and path.resolve() not in here:
                below = _files_by_stem(path, suffixes, nested, here)
                found |= {f"{entry.name}/{stem}": file for stem, file in below.items()}
        elif ending(entry.name) in suffixes:
            if path.stem in found:
                raise DataError(
                    f"{folder} holds both {found[path.stem].name} and {path.name}; keep one, "
                    "images and masks are matched by name"
                )
            found[path.stem] = path
    return found


def mixed_masks(folder: Path) -> list[str]:
    """The mask files among the images in a folder; see `fcn_jax.data.datasets.names`."""
    if not folder.is_dir():
        return []
    return names.mixed_masks(file_names(folder, IMAGE_SUFFIXES + MASK_SUFFIXES))


def contents_of(folder: Path, taken: Mapping[str, Path], *, masks: bool = False) -> str:
    """A phrase on the contents of a folder, for a message.

    Args:
        folder: the folder, which may be missing.
        taken: the files of it that are images, or masks.
        masks: whether it should hold masks.
    """
    if not folder.is_dir():
        return f"there is no folder {folder}"
    known = {path.name for path in taken.values()}
    others = Counter(ending(n) or "no ending" for n in file_names(folder) if n not in known)
    said = []
    if taken:
        first = next(iter(taken.values())).name
        said.append(f"{folder.name}/ holds {len(taken)} such files, as {first}")
    for found, count in others.most_common(3):
        lossy = masks and found in (".jpg", ".jpeg", ".webp")
        said.append(
            f"{count} {'file ends' if count == 1 else 'files end'} in {found}"
            f"{', which a mask must not be' if lossy else ''}"
        )
    said += _image_counts(folder)
    return "; ".join(said[:6]) or f"{folder.name}/ is empty"


def _image_counts(folder: Path) -> Iterable[str]:
    for name in subfolders(folder):
        count = image_count(folder / name)
        if count:
            yield f"the subfolder {name}/ holds {count} images"
