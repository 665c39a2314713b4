"""Pairs of images and masks, matched by the lines of a split list or by their names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fcn_jax.data.datasets.files import contents_of, mixed_masks
from fcn_jax.data.datasets.names import (
    NAMED_SUFFIXES,
    Affixes,
    MaskNames,
    base,
    common_prefix,
    composed,
    ending,
    folded,
    folders,
    loose,
    path_parts,
    stem,
    unquoted,
)
from fcn_jax.errors import DataError, listing
from fcn_jax.plugins.api import Record
from fcn_jax.runtime.text_file import read_text

_GAP = re.compile(r"\s*[,;\t]\s*|\s+")
_HEADER = re.compile(
    r"(image|mask|img|label|annotation|file|filename|name|id|path)s?([_ ]?(id|name|path|file)s?)?"
)
"""A word in the first line of a table of images and masks."""


class Pairs(tuple[Record, ...]):
    """Records, and the assumptions that were made to find them: `notes`, one line each."""

    notes: tuple[str, ...] = ()


def read_ids(path: Path) -> tuple[str, ...]:
    """The lines of a split list, without blank ones, quotes, and trailing commas.

    `match` documents what a line may hold.

    Raises:
        DataError: the file cannot be read, or a line occurs twice.
    """
    try:
        lines = read_text(path).split("\n")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot read the split file ({error}); it is text with one image name per line"
        ) from error
    ids = tuple(name for name in map(unquoted, lines) if name)
    repeated = [name for name in _repeated(ids) if not name.startswith("#")]
    if repeated:
        raise DataError(f"{path}: images listed twice: {listing(repeated)}; list each once")
    return ids


def match(
    ids: Sequence[str],
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    *,
    split: str,
    where: Path,
    image_folder: Path | None = None,
    mask_folder: Path | None = None,
) -> Pairs:
    """Pair each image with its mask.

    An ID is an image's name as a person would write it: with or without its ending and the folders
    above it, in any case and Unicode form that names only one image. A line may name the mask after
    the image. A number there is a flag, not a mask, unless it has an ending. Comments (`#`) and the
    header of a table are skipped.

    If no mask has its image's name, one rule is looked for that gives every image a mask of its
    own: other affixes, such as `mask_` instead of `img_`; padding zeros and separators that differ;
    other folders. `notes` name every assumption beyond the spelling of a name.

    Args:
        ids: the lines of a split list, or names; the records are in this order.
        images: files by name; see `fcn_jax.data.datasets.files.files_by_stem`.
        masks: files by name.
        split: the name of the split, for messages.
        where: the dataset's folder, to which paths in a line are relative.
        image_folder: the folder of `images`, for messages.
        mask_folder: the folder of `masks`, for messages.

    Raises:
        DataError: there is no name, an image is named twice, several images have the same mask, or
            images or masks are missing. All are counted, and the first dozen named.
    """
    found = _Matching(images, masks, where)
    for line in ids:
        found.add(line)
    at = f"{where}: split '{split}'"
    if not found.lines:
        lies = f" ({contents_of(image_folder, images)})" if image_folder else ""
        raise DataError(
            f"{at} holds no images{lies}; check that the folder is the right one and its files are "
            "in place"
        )
    found.check_flags()
    found.match_affixes()
    repeated = _repeated(found.names())
    if repeated:
        raise DataError(f"{at}: images listed twice: {listing(repeated)}; list each once")
    problems = [*found.problems, *found.shared_masks(mask_folder)]
    for kind, missing, files, folder in (
        ("image", found.missing_images, images, image_folder),
        ("mask", found.missing_masks, masks, mask_folder),
    ):
        if missing:
            reason = found.reason(kind, files, folder)
            mixed = mixed_masks(image_folder) if kind == "mask" and image_folder else []
            if mixed and image_folder:
                reason = (
                    f"masks lie among the images in {image_folder.name}/, as {mixed[0]}: move them "
                    f"to masks/; {reason}"
                )
            problems.append(
                f"{len(missing)} of {found.lines} {kind}s are missing: {listing(missing)}"
                f"{reason and f' ({reason})'}"
            )
    if problems:
        missing_any = found.missing_images or found.missing_masks
        is_missing = missing_any and not found.problems
        advice = ". Add the files or remove the names from the split" if is_missing else ""
        raise DataError(f"{at}: {'; '.join(problems)}{advice}")
    pairs = Pairs(found.records())
    pairs.notes = tuple(f"split '{split}': {note}" for note in found.notes)
    return pairs


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)


class _Index:
    """Files by name, found under the spellings that a person would take for the same."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files
        self.folded = 0
        self.in_subfolders = 0
        self._forms: tuple[dict[str, list[str]], ...] = ({}, {})
        self._bases: dict[str, list[str]] = {}
        for key in files:
            for known, form in zip(self._forms, (composed, folded), strict=True):
                known.setdefault(form(key), []).append(key)
            if "/" in key:
                self._bases.setdefault(folded(base(key)), []).append(key)

    def find(self, name: str) -> str | None:
        """The key of a name: as it is, in another Unicode form, or in another case.

        None if there is none or more than one.
        """
        if name in self.files:
            return name
        for known, form in zip(self._forms, (composed, folded), strict=True):
            keys = known.get(form(name), [])
            if len(keys) == 1:
                self.folded += composed(keys[0]) != composed(name)
                return keys[0]
            if keys:
                return None
        return None

    def find_path(self, text: str) -> str | None:
        """The key of a name with or without ending and folders."""
        parts = path_parts(text)
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            for name in (tail, stem(tail)):
                key = self.find(name)
                if key is not None:
                    return key
        below = self.below(text)
        if len(below) != 1:
            return None
        self.in_subfolders += 1
        return below[0]

    def below(self, text: str) -> list[str]:
        """The keys of files in subfolders that have a name without those folders."""
        *above, last = path_parts(text) or [""]
        named = {folder for folder in above if folder.lower() not in ("images", "masks")}
        keys = [key for name in (last, stem(last)) for key in self._bases.get(folded(name), [])]
        return [key for key in dict.fromkeys(keys) if named <= set(folders(key))]


class _Matching:
    """The pairs that are found, and the missing files."""

    def __init__(self, images: Mapping[str, Path], masks: Mapping[str, Path], where: Path) -> None:
        self.lines = 0
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.missing_images: list[str] = []
        self.missing_masks: list[str] = []
        self._images, self._masks, self._where = _Index(images), _Index(masks), where
        self._pairs: list[tuple[str, Path, Path | None]] = []
        self._flags: Counter[str] = Counter()
        self._own_flags: Counter[str] = Counter()  # numbers that are the image's own name
        self._named = False  # whether a line names a mask that is missing
        self._known = {path: key for key, path in images.items()}

    def names(self) -> list[str]:
        """The names of the images, in order."""
        return [key for key, _, _ in self._pairs]

    def records(self) -> Iterator[Record]:
        """The pairs."""
        return (Record(key, path, mask) for key, path, mask in self._pairs if mask is not None)

    def add(self, line: str) -> None:
        """Add one line of a list."""
        image = self._image(line)
        if image is not None and not self._has_columns(line):
            self._add(*image)
        elif line.startswith("#"):
            return
        elif not self._add_columns(line):
            words = [word.strip("\"'").lower() for word in re.split(r"[,;\s]+", line) if word]
            if not self.lines and all(_HEADER.fullmatch(word) for word in words):
                self.notes.append(f"the list's first line, '{line}', is a header")
                return
            self.missing_images.append(line)
            if self._masks.find_path(line) is None:
                self.missing_masks.append(line)
        self.lines += 1

    def _add(self, key: str, path: Path, mask: Path | None = None) -> None:
        if mask is None:
            mask_key = self._masks.find(key)
            # A mask with the exact name of another image is that image's.
            if mask_key is not None and (mask_key == key or mask_key not in self._images.files):
                mask = self._masks.files[mask_key]
        self._pairs.append((key, path, mask))
        if mask is None:
            self.missing_masks.append(key)

    def _has_columns(self, line: str) -> bool:
        """Whether a line holds an image's name and another path.

        Otherwise it may be one path whose folder has a space in its name.
        """
        above = line.replace("\\", "/").rpartition("/")[0]
        if line in self._images.files or self._file(line) is not None:
            return False
        starts = (unquoted(above[: gap.start()]) for gap in _GAP.finditer(above))
        return any(self._image(start) is not None for start in starts)

    def _add_columns(self, line: str) -> bool:
        """Add a line with more than an image's name; False if it cannot be read."""
        readings: set[tuple[str, Path, Path | None]] = set()
        for gap in _GAP.finditer(line):
            left, right = unquoted(line[: gap.start()]), unquoted(line[gap.end() :])
            image = self._image(left)
            if image is None or not right:
                continue
            if re.fullmatch(r"[-+]?\d+", right):
                # A number is a flag, as in VOC's lists, even if a mask has that number as its name.
                own = right in (left, base(image[0]), image[1].stem)
                (self._own_flags if own else self._flags)[right] += 1
                readings.add((*image, None))
                continue
            mask = self._mask(right)
            if mask is not None:
                readings.add((*image, mask))
            elif (ending(right) in NAMED_SUFFIXES or "/" in right) and not re.search(
                r"[,;\s]", right
            ):
                self._pairs.append((*image, None))
                self.missing_masks.append(right)
                self._named = True
                return True
        if len(readings) != 1:
            return False
        self._add(*readings.pop())
        return True

    def _image(self, text: str) -> tuple[str, Path] | None:
        """Name and file of an image. A path that leads to a file names that file."""
        if text in self._images.files:
            return text, self._images.files[text]
        path = self._file(text)
        if path is not None:
            return self._known.get(path, path.stem), path
        key = self._images.find_path(text)
        return None if key is None else (key, self._images.files[key])

    def _mask(self, text: str) -> Path | None:
        path = self._file(text)
        key = self._masks.find_path(text) if path is None else None
        return path if key is None else self._masks.files[key]

    def _file(self, text: str) -> Path | None:
        """The image file to which a path in a list leads, relative to the dataset's folder."""
        plain = text.replace("\\", "/")
        if "/" not in plain or ending(plain) not in NAMED_SUFFIXES:
            return None
        relative, absolute = self._where / "/".join(path_parts(plain)), Path(plain)
        if relative.is_file():
            return relative
        return absolute if absolute.is_absolute() and absolute.is_file() else None

    def check_flags(self) -> None:
        """Add notes and problems on numbers after the names, and on names in another spelling."""
        if self._flags:
            self._flags += self._own_flags
            other = sorted(set(self._flags) - {"-1", "0", "1"})
            if set(self._flags) == {"1"}:
                self.notes.append("the list's second column, 1 on every line, is not used")
            elif other:
                self.problems.append(
                    f"lines end in the numbers {listing(other)}, which name no mask; write a mask "
                    f"with its ending, such as {other[0]}.png, or keep only the images' names"
                )
            else:
                self.problems.append(
                    f"lines end in the flags {listing(sorted(self._flags))}, as VOC's lists of one "
                    "class do, which are not splits; keep only the names"
                )
        spelled = self._images.folded + self._masks.folded
        if spelled:
            self.notes.append(f"{spelled} names match only in other upper and lower case")
        if self._images.in_subfolders:
            self.notes.append(
                f"{self._images.in_subfolders} names are those of images in subfolders, without "
                "the folder"
            )

    def match_affixes(self) -> None:
        """If no image has a mask of its name, find one rule that gives every image a mask."""
        found_some = any(mask is not None for _, _, mask in self._pairs)
        if not self._pairs or self.missing_images or self._named or found_some:
            return
        names = self.names()
        for form in (folded, loose):
            masks = MaskNames(self._masks.files, form)
            whole: dict[tuple[str, ...], str] = {}
            for rule in masks.rules(names):
                keys = self._by_rule(names, rule, masks)
                if keys is not None:
                    differ = "differ in padding zeros or separators" if form is loose else ""
                    said = " and ".join(filter(None, (rule.phrase(names[0], keys[0]), differ)))
                    whole.setdefault(keys, said or "are the same, in other folders")
            if not whole:
                continue
            self.missing_masks.clear()
            if len(whole) == 1:
                ((found, said),) = whole.items()
                self._pairs = [
                    (key, path, self._masks.files[mask])
                    for (key, path, _), mask in zip(self._pairs, found, strict=True)
                ]
                self.notes.append(f"masks are matched by names that {said}")
            else:
                kinds = sorted(set(whole.values()))
                more = f" and {len(kinds) - 4} more" if len(kinds) > 4 else ""
                self.problems.append(
                    f"each image has several masks, with names that {' or '.join(kinds[:4])}{more};"
                    " keep one kind"
                )
            return

    def _by_rule(
        self, names: Sequence[str], rule: Affixes, masks: MaskNames
    ) -> tuple[str, ...] | None:
        """The masks of images by a rule; None unless each has a mask that no other image has."""
        found = [key for name in names if (key := masks.find(name, rule)) is not None]
        if len(found) < len(names):
            return None
        everywhere = [masks.find(name, rule) for name in self._images.files]
        taken = Counter(everywhere)
        if any(taken[key] > 1 for key in found) or len(set(found)) < len(found):
            return None
        # If there are enough masks, a missing one shows that the rule pairs the others wrongly.
        if None in everywhere and len(self._masks.files) >= len(everywhere):
            return None
        return tuple(found)

    def reason(self, kind: str, files: Mapping[str, Path], folder: Path | None) -> str:
        """Why files may be missing, and which files there are instead."""
        is_mask = kind == "mask"
        said = self._other_names(files) if is_mask else []
        missing = self.missing_masks if is_mask else self.missing_images
        spellings = Counter(map(folded, files))
        unclear = [name for name in missing if spellings[folded(stem(name))] > 1]
        if unclear:
            said.append(f"names that differ in case only are not clear: {listing(unclear, 3)}")
        index = self._masks if is_mask else self._images
        below = [(name, index.below(name)) for name in missing]
        several = [f"{name} is one of {listing(keys, 4)}" for name, keys in below if len(keys) > 1]
        if several:
            said.append(f"write the folder too: {', '.join(several[:3])}")
        if folder is not None:
            said.append(contents_of(folder, files, masks=is_mask))
        return "; ".join(said[:4])

    def _other_names(self, files: Mapping[str, Path]) -> list[str]:
        """Phrases on masks whose names differ from their images'."""
        names = [key for key, _, mask in self._pairs if mask is None]
        masks = MaskNames(files, folded)
        said = []
        for rule in masks.rules(names)[:20]:
            found = [(name, key) for name in names if (key := masks.find(name, rule)) is not None]
            affixes = rule.phrase(*found[0]) if found else ""
            if affixes:
                said.append(f"{len(found)} masks have names that {affixes}")
        if not said and len(names) > 1 and len(files) > 1:
            prefixes = common_prefix(files), common_prefix(names)
            if prefixes[0] != prefixes[1]:
                mask, image = (
                    f"begin with `{prefix}`" if prefix else "have no common beginning"
                    for prefix in prefixes
                )
                said.append(f"masks {mask} where images {image}")
        return said

    def shared_masks(self, folder: Path | None) -> list[str]:
        """Problems with masks that several images have, or that are images themselves."""
        users: dict[Path, list[str]] = {}
        own = []
        for key, image, mask in self._pairs:
            if mask is not None:
                users.setdefault(Path(os.path.normpath(mask)), []).append(key)
                if os.path.normpath(mask) == os.path.normpath(image):
                    own.append(key)
        shared = [(mask, keys) for mask, keys in users.items() if len(keys) > 1]
        said = []
        for mask, keys in shared[:4]:
            inside = folder and mask.is_relative_to(folder)
            name = mask.relative_to(folder).as_posix() if folder and inside else mask.name
            said.append(f"mask {name} is given to {len(keys)} images: {listing(keys)}")
        if len(shared) > 4:
            said.append(f"{len(shared) - 4} more masks are given to several images")
        if own:
            said.append(f"images are given as their own masks: {listing(own)}")
        return said
