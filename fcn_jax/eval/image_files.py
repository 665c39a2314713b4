"""The image files that paths, folders and globs name."""

from __future__ import annotations

import dataclasses
import difflib
import glob
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fcn_jax.data.datasets.directory import IMAGE_SUFFIXES
from fcn_jax.errors import DataError, listing
from fcn_jax.eval import draw

_OTHER_PICTURES = re.compile(
    r"\.(arw|avif|cr2|cr3|dng|exr|gif|hdr|heic|heif|jfif|jp2|nef|npz|pgm|ppm|psd|raf|svg|tga) file"
)
"""Kinds of files that a user might expect to be segmented, as named by `_contents`."""


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode, the same for all names of a file; None if the file cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@dataclasses.dataclass(frozen=True)
class Found:
    """The files that match files, folders and globs.

    Attributes:
        images: the files to segment, in order, without repeats.
        results: masks and overlays of an earlier prediction among them.
        other: number of pictures in the folders by file ending, for formats that cannot be read.
    """

    images: list[Path]
    results: list[Path]
    other: Counter[str]


def find_images(patterns: Sequence[str]) -> Found:
    """Find the images that files, folders and globs match.

    A folder or glob matches its files with an image's ending that are not hidden. A named file is
    taken whatever its ending. Masks and overlays of an earlier prediction are skipped even if they
    are named, because a shell expands `photos/*` to all names.

    Args:
        patterns: each is an existing file or folder, or a glob, which may contain `**`.

    Raises:
        DataError: a pattern matches no image, all matches are results of an earlier prediction, or
            two images would write the same file.
    """
    found: dict[tuple[Path, str], Path] = {}
    resolved: dict[Path, Path] = {}
    problems = []
    for pattern in patterns:
        if not pattern.strip():
            problems.append("an image's path is empty; name a file, a folder or a glob")
            continue
        try:
            matches = _matches(pattern)
        except OSError as error:
            problems.append(f"{pattern}: cannot be read ({error.strerror or error})")
            continue
        if not matches:
            problems.append(_nothing_there(pattern))
        for path in matches:
            # One entry per name, however its folder is spelled. A link to a file is a new name.
            folder = resolved.get(path.parent) or resolved.setdefault(
                path.parent, path.parent.resolve()
            )
            found.setdefault((folder, path.name), path)
    if problems:
        raise DataError("; ".join(problems))
    results = [path for path in found.values() if draw.is_result(path)]
    left = set(results)
    images = [path for path in found.values() if path not in left]
    if not images:
        raise DataError(
            f"nothing to segment: {counted(len(results), 'file')} found, all of them results of "
            f"fcn-jax predict: {listing(map(str, results))}"
        )
    folders = {Path(pattern).resolve() for pattern in patterns if os.path.isdir(pattern)}
    other: Counter[str] = sum((_contents(folder) for folder in folders), Counter())
    return Found(
        _distinct(images),
        results,
        Counter({kind: n for kind, n in other.items() if _OTHER_PICTURES.fullmatch(kind)}),
    )


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    if os.path.isdir(path):
        return sorted(entry for entry in path.iterdir() if _is_image_file(entry))
    if os.path.exists(path):
        return [path]
    # Leading folders that exist are literal: the brackets of "[2024] trip/*.jpg" do not match.
    base, parts = Path(path.anchor), list(path.parts[bool(path.anchor) :])
    while len(parts) > 1 and os.path.isdir(base / parts[0]):
        base /= parts.pop(0)
    relative = glob.glob(os.path.join(*parts), root_dir=base, recursive=True) if parts else []
    return sorted(entry for entry in (base / name for name in relative) if _is_image_file(entry))


def _is_image_file(path: Path) -> bool:
    return (
        path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and os.path.isfile(path)
    )


def _nothing_there(pattern: str) -> str:
    """Why a pattern matches no image."""
    path = Path(pattern)
    known = f"images end in {', '.join(IMAGE_SUFFIXES)}"
    if os.path.isdir(path):
        kinds = _contents(path)
        if not kinds:
            return f"{pattern}: the folder is empty"
        held = listing(
            counted(number, kind)
            for kind, number in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        )
        deeper = f"; to search its folders, use the glob '{path / '**' / '*'}'"
        return (
            f"{pattern}: contains no images, only {held}; {known}"
            f"{deeper if 'folder' in kinds else ''}"
        )
    if os.path.islink(path):
        return f"{pattern}: a symbolic link to {os.readlink(path)}, which does not exist"
    if glob.has_magic(pattern):
        return f"{pattern}: matches no image; {known}"
    if not os.path.isdir(path.parent):
        return f"{pattern}: no such image; there is no folder {path.parent}"
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.7)
    except OSError:
        near = []
    hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
    return f"{pattern}: no such image{hint}"


def _contents(folder: Path) -> Counter[str]:
    """Number of a folder's files by ending and of its folders, without hidden ones."""
    return Counter(
        "folder"
        if os.path.isdir(entry)
        else f"{entry.suffix.lower()} file"
        if entry.suffix
        else "file without ending"
        for entry in folder.iterdir()
        if not entry.name.startswith(".")
    )


def counted(number: int, noun: str) -> str:
    """Return a number and a noun in the singular or plural, such as "2 files"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun.replace('file', 'files', 1) if noun.startswith('file') else noun + 's'}"


def _distinct(images: Sequence[Path]) -> list[Path]:
    """Drop second names of a file that would write the same result.

    Raises:
        DataError: different images would write the same file. Names that differ only in case or in
            the Unicode form of accents count as equal, as some file systems treat them so.
    """
    writers: dict[str, Path] = {}
    kept, clashes = [], []
    for image in images:
        stem = _folded(image.stem)
        names = stem, f"{stem}_overlay"
        others = [writers[name] for name in names if name in writers]
        if any(
            _folded(other.stem) == stem and identity(other) == identity(image) for other in others
        ):
            continue
        if others:
            clashes.append(f"{others[0]} and {image}")
            continue
        writers.update(dict.fromkeys(names, image))
        kept.append(image)
    if clashes:
        raise DataError(
            f"{counted(len(clashes), 'pair')} of images would write the same file: "
            f"{listing(clashes)}; rename one of each pair, or predict them to different folders "
            "with -o"
        )
    return kept


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
