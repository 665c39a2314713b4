"""Pairs of images and masks, matched by the lines of a split list or by their names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from fcn_jax.data.datasets.file_index import FileIndex
from fcn_jax.data.datasets.files import Files, contents_of, mixed_masks
from fcn_jax.data.datasets.names import (
    NAMED_SUFFIXES,
    Affixes,
    MaskNames,
    base,
    common_prefix,
    ending,
    folded,
    loose,
    stem,
)
from fcn_jax.data.labels.class_list_entries import unquoted
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
    ids = tuple(name for name in map(_field, lines) if name)
    repeated = [name for name in _repeated(ids) if not name.startswith("#")]
    if repeated:
        raise DataError(f"{path}: images listed twice: {listing(repeated)}; list each once")
    return ids


def match(ids: Sequence[str], images: Files, masks: Files, *, split: str, where: Path) -> Pairs:
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

    Raises:
        DataError: there is no name, an image is named twice, several images have the same mask, or
            images or masks are missing. All are counted, and the first dozen named.
    """
    found = _Matching(images, masks, where)
    for line in ids:
        found.add(line)
    at = f"{where}: split '{split}'"
    if not found.lines:
        raise DataError(
            f"{at} holds no images ({contents_of(images)}); check that the folder is the right one "
            "and its files are in place"
        )
    found.check_flags()
    found.match_affixes()
    repeated = _repeated(key for key, _, _ in found.pairs)
    if repeated:
        raise DataError(f"{at}: images listed twice: {listing(repeated)}; list each once")
    missing = found.missing_files()
    problems = [*found.problems, *found.shared_masks(), *missing]
    if problems:
        is_missing = missing and not found.problems
        advice = ". Add the files or remove the names from the split" if is_missing else ""
        raise DataError(f"{at}: {'; '.join(problems)}{advice}")
    pairs = Pairs(Record(key, image, mask) for key, image, mask in found.pairs if mask)
    pairs.notes = tuple(f"split '{split}': {note}" for note in found.notes)
    return pairs


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)


def _field(text: str) -> str:
    """A field of a list without a trailing comma and quotes around it."""
    return unquoted(text.strip().rstrip(",;"))


class _Matching:
    """The pairs that are found (the mask is None if it is missing), and the problems."""

    def __init__(self, images: Files, masks: Files, where: Path) -> None:
        self.lines = 0
        self.pairs: list[tuple[str, Path, Path | None]] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._images = FileIndex("image", images, where)
        self._masks = FileIndex("mask", masks, where)
        self._flags: set[str] = set()
        self._own_flags: set[str] = set()  # numbers that are the image's own name
        self._named = False  # whether a line names a mask that is missing

    def add(self, line: str) -> None:
        """Add one line of a list."""
        image = self._images.locate(line)
        if image is not None and not self._has_columns(line):
            self._add(*image)
        elif line.startswith("#"):
            return
        elif not self._add_columns(line):
            words = [word.strip("\"'").lower() for word in re.split(r"[,;\s]+", line) if word]
            if not self.lines and all(_HEADER.fullmatch(word) for word in words):
                self.notes.append(f"the list's first line, '{line}', is a header")
                return
            self._images.missing.append(line)
            if self._masks.find_path(line) is None:
                self._masks.missing.append(line)
        self.lines += 1

    def _add(self, key: str, path: Path, mask: Path | None = None) -> None:
        if mask is None:
            mask_key = self._masks.find(key)
            # A mask with the exact name of another image is that image's.
            if mask_key is not None and (mask_key == key or mask_key not in self._images.files):
                mask = self._masks.files[mask_key]
        self.pairs.append((key, path, mask))
        if mask is None:
            self._masks.missing.append(key)

    def _has_columns(self, line: str) -> bool:
        """Whether a line holds an image's name and another path.

        Otherwise it may be one path whose folder has a space in its name.
        """
        above = line.replace("\\", "/").rpartition("/")[0]
        if line in self._images.files or self._images.path(line) is not None:
            return False
        starts = (_field(above[: gap.start()]) for gap in _GAP.finditer(above))
        return any(self._images.locate(start) is not None for start in starts)

    def _add_columns(self, line: str) -> bool:
        """Add a line with more than an image's name; False if it cannot be read."""
        readings: set[tuple[str, Path, Path | None]] = set()
        for gap in _GAP.finditer(line):
            left, right = _field(line[: gap.start()]), _field(line[gap.end() :])
            image = self._images.locate(left)
            if image is None or not right:
                continue
            if re.fullmatch(r"[-+]?\d+", right):
                # A number is a flag, as in VOC's lists, even if a mask has that number as its name.
                own = right in (left, base(image[0]), image[1].stem)
                (self._own_flags if own else self._flags).add(right)
                readings.add((*image, None))
                continue
            mask = self._masks.locate(right)
            if mask is not None:
                readings.add((*image, mask[1]))
            elif (ending(right) in NAMED_SUFFIXES or "/" in right) and not re.search(
                r"[,;\s]", right
            ):
                self.pairs.append((*image, None))
                self._masks.missing.append(right)
                self._named = True
                return True
        if len(readings) != 1:
            return False
        self._add(*readings.pop())
        return True

    def check_flags(self) -> None:
        """Add notes and problems on numbers after the names, and on names in another spelling."""
        flags = sorted(self._flags | self._own_flags) if self._flags else []
        other = [flag for flag in flags if flag not in ("-1", "0", "1")]
        if flags == ["1"]:
            self.notes.append("the list's second column, 1 on every line, is not used")
        elif other:
            self.problems.append(
                f"lines end in the numbers {listing(other)}, which name no mask; write a mask with "
                f"its ending, such as {other[0]}.png, or keep only the images' names"
            )
        elif flags:
            self.problems.append(
                f"lines end in the flags {listing(flags)}, as VOC's lists of one class do, which "
                "are not splits; keep only the names"
            )
        recased = self._images.recased + self._masks.recased
        if recased:
            self.notes.append(f"{recased} names match only in other upper and lower case")
        if self._images.in_subfolders:
            self.notes.append(
                f"{self._images.in_subfolders} names are those of images in subfolders, without "
                "the folder"
            )

    def match_affixes(self) -> None:
        """If no image has a mask of its name, find one rule that gives every image a mask."""
        found_some = any(mask is not None for _, _, mask in self.pairs)
        if not self.pairs or self._images.missing or self._named or found_some:
            return
        names = [key for key, _, _ in self.pairs]
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
            self._masks.missing.clear()
            if len(whole) == 1:
                ((found, said),) = whole.items()
                self.pairs = [
                    (key, path, self._masks.files[mask])
                    for (key, path, _), mask in zip(self.pairs, found, strict=True)
                ]
                self.notes.append(f"masks are matched by names that {said}")
            else:
                kinds = listing(sorted(set(whole.values())), 4, " or ")
                self.problems.append(
                    f"each image has several masks, with names that {kinds}; keep one kind"
                )
            return

    def _by_rule(
        self, names: Sequence[str], rule: Affixes, masks: MaskNames
    ) -> tuple[str, ...] | None:
        """The masks of images by a rule; None unless each has a mask that no other image has."""
        keys = {name: masks.find(name, rule) for name in (*self._images.files, *names)}
        users = Counter(keys.values())
        found = tuple(key for name in names if (key := keys[name]) is not None and users[key] == 1)
        # If there are enough masks, a missing one shows that the rule pairs the others wrongly.
        is_wrong = None in users and len(self._masks.files) >= len(keys)
        return found if len(found) == len(names) and not is_wrong else None

    def missing_files(self) -> list[str]:
        """Problems with missing images and masks, with the files that there are instead."""
        return [
            f"{len(index.missing)} of {self.lines} {index.kind}s are missing: "
            f"{listing(index.missing)} ({self._reason(index)})"
            for index in (self._images, self._masks)
            if index.missing
        ]

    def _reason(self, index: FileIndex) -> str:
        is_mask, said = index is self._masks, []
        if is_mask:
            images = self._images.files.folder
            if mixed := mixed_masks(images):
                said.append(
                    f"masks lie among the images in {images.name}/, as {mixed[0]}: move them to "
                    "masks/"
                )
            said += self._other_names()
        unclear = [name for name in index.missing if len(index.spellings(stem(name))) > 1]
        if unclear:
            said.append(f"names that differ in case only are not clear: {listing(unclear, 3)}")
        several = [
            f"{name} is one of {listing(keys, 4)}"
            for name in index.missing
            if len(keys := index.below(name)) > 1
        ]
        if several:
            said.append(f"write the folder too: {', '.join(several[:3])}")
        return "; ".join([*said, contents_of(index.files, masks=is_mask)][:5])

    def _other_names(self) -> list[str]:
        """Phrases on masks whose names differ from their images'."""
        names = [key for key, _, mask in self.pairs if mask is None]
        files = self._masks.files
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

    def shared_masks(self) -> list[str]:
        """Problems with masks that several images have, or that are images themselves."""
        users: dict[str, list[str]] = {}
        own = []
        for key, image, mask in self.pairs:
            if mask is not None:
                users.setdefault(os.path.normpath(mask), []).append(key)
                if os.path.normpath(mask) == os.path.normpath(image):
                    own.append(key)
        inside = f"{os.path.normpath(self._masks.files.folder)}{os.sep}"
        shared = [(mask, keys) for mask, keys in users.items() if len(keys) > 1]
        said = [
            f"mask {mask.removeprefix(inside)} is given to {len(keys)} images: {listing(keys)}"
            for mask, keys in shared[:4]
        ]
        if len(shared) > 4:
            said.append(f"{len(shared) - 4} more masks are given to several images")
        if own:
            said.append(f"images are given as their own masks: {listing(own)}")
        return said
