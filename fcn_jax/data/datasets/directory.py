"""Datasets that lie in folders and are read in place, without a prepared copy that could go stale.

This is what the layouts (`voc`, `camvid`, `folder`) share: the source, and the checks made when a
split is opened.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fcn_jax.data.decode import decode_record
from fcn_jax.data.labels.label_map import Color, LabelMap
from fcn_jax.data.value_range import Assumed, Range
from fcn_jax.errors import DataError, did_you_mean, listing
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Example, Record
from fcn_jax.runtime.text_file import read_text

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""File name endings that count as images, in lower case."""

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
"""File name endings that count as masks, in lower case: of formats that are lossless, or may be."""

_NAMED_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")

_SEPARATORS = "_-. "
_IMAGE_WORD = "(?:leftimg8bit|images?|imgs?|im|frames?|photos?|pictures?|pics?|rgb|sat|satellite|colou?r|input|original|orig|raw|x)"
_IMAGE_PREFIX = re.compile(rf"{_IMAGE_WORD}(?:[_\-. ]+|(?=\d))")
_IMAGE_SUFFIX = re.compile(rf"(?:[_\-. ]+|(?<=\d)){_IMAGE_WORD}$")
"""What images' names may begin or end in where their masks' do not."""

_MASK_WORDS = (
    "(?:masks?|labels?|labelids|labeltrainids|lbls?|lab|gts?|ground_?truth|gtfine|truth|seg|segmentations?|annotations?|annots?|anns?|anno"
    "|targets?|y|l|m)"
)
_MASK_WORD = re.compile(rf"[_\-. ]*{_MASK_WORDS}[_\-. ]*")
"""What masks' names may have without a separator."""

_MASK_END = re.compile(rf"(?P<base>.+?)[_\-. ]+{_MASK_WORDS}")
_MASK_START = re.compile(rf"{_MASK_WORDS}[_\-. ]+(?P<base>.+)")

_TRAINING = ("train", "training", "trainset", "trn", "tr", "trainval")
_VALIDATION = (
    "val",
    "valid",
    "validation",
    "valset",
    "dev",
    "eval",
    "evaluation",
    "test",
    "testing",
)
"""Names of splits that are used in the same way, the nearest first."""

SPLIT_NAMES = frozenset((*_TRAINING, *_VALIDATION))
"""Usual names of splits, in lower case."""

_HEADER = re.compile(
    r"(image|mask|img|label|annotation|file|filename|name|id|path)s?([_ ]?(id|name|path|file)s?)?"
)
"""A word of the first line of a table of images and masks."""


class Pairs(tuple[Record, ...]):
    """Records, and what was assumed to find them: `notes`, a line each."""

    notes: tuple[str, ...] = ()


@dataclasses.dataclass(eq=False)
class DirectorySource:
    """A split whose images and masks are files; a `fcn_jax.plugins.api.Source`.

    Attributes:
        classes: the classes.
        records: one per image.
        void: stored mask values that become `IGNORE_INDEX`.
        palette: RGB color -> label for masks in colors; None refuses them.
        labels: what the stored values mean; where it is given, `void` and `palette` are not used.
        notes: what was assumed when the split was opened, a line each, for the caller to print.
        value_range: of images of more than 8 bits; see `fcn_jax.data.decode.read_image`.
    """

    classes: Classes
    records: tuple[Record, ...]
    void: tuple[int, ...] = (IGNORE_INDEX,)
    palette: Mapping[Color, int] | None = None
    labels: LabelMap = None  # type: ignore[assignment]  # `__post_init__` fills it in
    notes: tuple[str, ...] = ()
    value_range: Range | Assumed | None = None

    def __post_init__(self) -> None:
        """Take `labels` from `void` and `palette` where it was not given, and the records' notes."""
        if self.labels is None:
            self.labels = LabelMap.of(len(self.classes), void=self.void, palette=self.palette)
        if isinstance(self.records, Pairs):
            self.notes = (*self.notes, *self.records.notes)
            self.records = tuple(self.records)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        """The record at `index`, 0 <= index < len."""
        return self.records[index]

    def decode(self, record: Record) -> Example:
        """Decode a record. Raises `DataError`; see `fcn_jax.data.decode.decode_record`."""
        return self.decode_resized(record, 1.0)

    def decode_resized(self, record: Record, factor: float) -> Example:
        """Decode a record at another size; see `fcn_jax.plugins.api.Source`."""
        return decode_record(record, self.labels, factor=factor, value_range=self.value_range)


def require_root(root: Path | None, name: str, holds: str) -> Path:
    """The dataset's folder.

    Args:
        root: `--data`, or None.
        name: the dataset.
        holds: what the folder should hold, for the message.

    Raises:
        DataError: it was not given, or is no folder.
    """
    if root is None:
        raise DataError(
            f"dataset '{name}' needs its folder: pass --data DIR, a folder that holds {holds}"
        )
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"--data {root} {problem}; dataset '{name}' wants a folder that holds {holds}"
        )
    return root


def check_split(split: str, available: Iterable[str], where: Path) -> None:
    """Raise `DataError` saying which splits exist, unless `split` is one of them; and how to choose one that is meant by its name."""
    names = list(available)
    if split in names:
        return
    advice = ""
    for setting, meant in (("data.train_split", _TRAINING), ("data.val_split", _VALIDATION)):
        near = sorted(
            (name for name in names if name.lower() in meant),
            key=lambda name: meant.index(name.lower()),
        )
        if split.lower() in meant and near:
            value = near[0] if re.fullmatch(r"[\w.-]+", near[0]) else f"'{near[0]}'"
            advice = f" To use '{near[0]}', pass --set {setting}={value}"
    raise DataError(f"{where} has no split '{split}'. {did_you_mean(split, names)}{advice}")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that file managers, archives and editors leave behind: `.DS_Store`, `__MACOSX`, `@eaDir`, `a~`."""
    return (
        name.startswith((".", "~$", "@ea"))
        or name.endswith("~")
        or name in ("__MACOSX", "$RECYCLE.BIN", "lost+found")
    )


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, in order of name, without hidden files.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(
                (entry for entry in found if not is_hidden(entry.name)),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise DataError(
            f"{folder}: cannot read the folder ({error.strerror}); check its permissions"
        ) from error


def image_count(folder: Path) -> int:
    """Number of image files in a folder, not in its subfolders."""
    return sum(
        1
        for entry in entries(folder)
        if _ending(entry.name) in IMAGE_SUFFIXES and not entry.is_dir()
    )


def has_images(
    folder: Path, depth: int = 3, suffixes: Sequence[str] = MASK_SUFFIXES + IMAGE_SUFFIXES
) -> bool:
    """Whether a folder, or one at most `depth` levels below it, holds files with one of the endings."""
    found = entries(folder)
    return any(_ending(entry.name) in suffixes and not entry.is_dir() for entry in found) or (
        depth > 0
        and any(
            entry.is_dir() and has_images(folder / entry.name, depth - 1, suffixes)
            for entry in found
        )
    )


def files_by_stem(
    folder: Path, suffixes: Sequence[str], *, nested: bool = False
) -> dict[str, Path]:
    """The files of a folder by name without ending, in order of name; hidden files are passed over.

    Args:
        folder: an existing folder or a missing one, which is empty.
        suffixes: endings to take, in lower case.
        nested: whether to take the files of subfolders too. Their names begin with the subfolder's:
            `city/a`.

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
        if entry.is_dir():
            here = above | {folder.resolve()} if nested else above
            # A link may lead back to a folder above it.
            if nested and (folder / entry.name).resolve() not in here:
                below = _files_by_stem(folder / entry.name, suffixes, nested, here)
                found |= {f"{entry.name}/{stem}": path for stem, path in below.items()}
            continue
        if _ending(entry.name) not in suffixes:
            continue
        path = folder / entry.name
        if path.stem in found:
            raise DataError(
                f"{folder} holds both {found[path.stem].name} and {path.name}; keep one, images and masks are matched by name"
            )
        found[path.stem] = path
    return found


def mixed_masks(folder: Path) -> list[str]:
    """Mask files that lie among the images in a folder: `a_mask.png` with `a.jpg`, or `a.png` with `a.jpg`; [] where none do."""
    if not folder.is_dir():
        return []
    files = [
        entry.name
        for entry in entries(folder)
        if not entry.is_dir() and _ending(entry.name) in IMAGE_SUFFIXES + MASK_SUFFIXES
    ]
    stems = {_folded(_stem(name)) for name in files}
    affixed = [
        name
        for name in files
        if (
            found := _MASK_END.fullmatch(_folded(_stem(name)))
            or _MASK_START.fullmatch(_folded(_stem(name)))
        )
        and found["base"] in stems
    ]
    if affixed:
        return affixed
    photos = {_folded(_stem(name)) for name in files if _ending(name) in (".jpg", ".jpeg")}
    return [name for name in files if _ending(name) == ".png" and _folded(_stem(name)) in photos]


def read_ids(path: Path) -> tuple[str, ...]:
    """The lines of a split file without blank ones, spaces around them, quotes and trailing commas. `match` says what a line may hold.

    Raises:
        DataError: the file cannot be read, or a line stands twice.
    """
    try:
        lines = read_text(path).split("\n")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot read the split file ({error}); it is text with one image name a line"
        ) from error
    ids = tuple(name for name in (_clean(line) for line in lines) if name)
    repeated = sorted(
        name for name, times in Counter(ids).items() if times > 1 and not name.startswith("#")
    )
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
    above it, in any case and Unicode form that names one image only. A line may name the mask after
    the image; a number there is a flag, not a mask, unless it has an ending. Comments (`#`) and the
    header of a table are passed over. Where no mask has its image's name, one rule is looked for
    that gives every image a mask of its own: other beginnings and endings, such as `mask_` instead
    of `img_`; padding zeros and separators that differ; other folders. All that goes beyond a
    name's spelling is said in `notes`.

    Args:
        ids: the lines of a split file, or names; the records are in this order.
        images: files by name, as `files_by_stem` gives them.
        masks: files by name.
        split: for the messages.
        where: the dataset's folder, to which paths in a line are relative.
        image_folder: where `images` were looked for, for the messages.
        mask_folder: where `masks` were looked for, for the messages.

    Raises:
        DataError: there is no name, an image is named twice, a mask is given to several images, or
            images or masks are missing; all are counted and the first dozen named.
    """
    found = _Matching(images, masks, where)
    for line in ids:
        found.add(line)
    if not found.lines:
        lies = f" ({_what_lies(image_folder, images)})" if image_folder else ""
        raise DataError(
            f"{where}: split '{split}' holds no images{lies}; check that the folder is the right one and its files are in place"
        )
    found.match_affixes()
    repeated = sorted(name for name, times in Counter(found.names()).items() if times > 1)
    if repeated:
        raise DataError(
            f"{where}: split '{split}': images listed twice: {listing(repeated)}; list each once"
        )
    problems = [*found.problems, *found.shared_masks(mask_folder)]
    for kind, missing, files, folder in (
        ("image", found.missing_images, images, image_folder),
        ("mask", found.missing_masks, masks, mask_folder),
    ):
        if missing:
            reason = found.near(kind, files, folder)
            mixed = mixed_masks(image_folder) if kind == "mask" and image_folder else []
            if mixed and image_folder:
                reason = f"masks lie among the images in {image_folder.name}/, as {mixed[0]}: move them to masks/; {reason}"
            problems.append(
                f"{len(missing)} of {found.lines} {kind}s are missing: {listing(missing)}{reason and f' ({reason})'}"
            )
    if problems:
        missing_any = found.missing_images or found.missing_masks
        what_to_do = (
            ". Add the files or take the names off the split"
            if missing_any and not found.problems
            else ""
        )
        raise DataError(f"{where}: split '{split}': {'; '.join(problems)}{what_to_do}")
    pairs = Pairs(found.records())
    pairs.notes = tuple(f"split '{split}': {note}" for note in found.notes)
    return pairs


class _Index:
    """Files by name, found under the spellings that a person would take for the same."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files
        self._forms: tuple[dict[str, list[str]], dict[str, list[str]]] | None = None
        self._bases: dict[str, list[str]] | None = None
        self.folded = 0
        self.in_subfolders = 0

    def find(self, name: str) -> str | None:
        """The key of a name: as it is, in another Unicode form, or in another case; None where there is none or more than one."""
        if name in self.files:
            return name
        if self._forms is None:
            self._forms = {}, {}
            for key in self.files:
                composed = unicodedata.normalize("NFC", key)
                self._forms[0].setdefault(composed, []).append(key)
                self._forms[1].setdefault(composed.casefold(), []).append(key)
        composed = unicodedata.normalize("NFC", name)
        for form, known in zip((composed, composed.casefold()), self._forms, strict=True):
            keys = known.get(form, [])
            if len(keys) == 1:
                self.folded += unicodedata.normalize("NFC", keys[0]) != composed
                return keys[0]
            if keys:
                return None
        return None

    def find_path(self, text: str) -> str | None:
        """The key of a name with or without ending and folders."""
        parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            for name in (tail, _stem(tail)):
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
        if self._bases is None:
            self._bases = {}
            for key in self.files:
                if "/" in key:
                    self._bases.setdefault(_folded(_base(key)), []).append(key)
        *folders, last = [
            part for part in text.replace("\\", "/").split("/") if part not in ("", ".")
        ] or [""]
        named = {folder for folder in folders if folder.lower() not in ("images", "masks")}
        keys = {
            key: None for name in (last, _stem(last)) for key in self._bases.get(_folded(name), [])
        }
        return [key for key in keys if named <= set(_folders(key))]


class _Matching:
    """The pairs that are found, and what is missing."""

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
        self._named = False  # whether a line names a mask that is not there
        self._known = {path: key for key, path in images.items()}

    def add(self, line: str) -> None:
        """Take one line of a list."""
        image = self._image(line)
        if image is not None and not self._has_columns(line):
            self._add(line, *image)
        elif line.startswith("#"):
            return
        elif not self._add_columns(line):
            if not self.lines and _is_header(line):
                self.notes.append(f"the list's first line, '{line}', is a header")
                return
            self.missing_images.append(line)
            if self._masks.find_path(line) is None:
                self.missing_masks.append(line)
        self.lines += 1

    def _add(self, line: str, key: str, path: Path, mask: Path | None = None) -> None:
        if mask is None:
            mask_key = self._masks.find(key)
            if (
                mask_key != key and mask_key in self._images.files
            ):  # it has the exact name of another image
                mask_key = None
            mask = None if mask_key is None else self._masks.files[mask_key]
        self._pairs.append((key, path, mask))
        if mask is None:
            self.missing_masks.append(key)

    def _has_columns(self, line: str) -> bool:
        """Whether a line begins with an image's name and ends in another path, rather than in a folder's name that holds a space."""
        folders = line.replace("\\", "/").rpartition("/")[0]
        if line in self._images.files or self._file(line) is not None:
            return False
        return any(
            self._image(_clean(folders[: gap.start()])) is not None
            for gap in re.finditer(r"\s*[,;\t]\s*|\s+", folders)
        )

    def _add_columns(self, line: str) -> bool:
        """Take a line of more than an image's name."""
        readings: dict[tuple[str, Path, Path | None], str] = {}
        for gap in re.finditer(r"\s*[,;\t]\s*|\s+", line):
            left, right = _clean(line[: gap.start()]), _clean(line[gap.end() :])
            image = self._image(left)
            if image is None or not right:
                continue
            if re.fullmatch(r"[-+]?\d+", right):
                # A number is a flag, as in VOC's lists, also where a mask has that number as its
                # name.
                flags = (
                    self._own_flags
                    if right in (left, image[0].rpartition("/")[2], image[1].stem)
                    else self._flags
                )
                flags[right] += 1
                readings[(*image, None)] = right
                continue
            mask = self._mask(right)
            if mask is not None:
                readings[(*image, mask)] = right
            elif (_ending(right) in _NAMED_SUFFIXES or "/" in right) and not re.search(
                r"[,;\s]", right
            ):
                self._pairs.append((*image, None))
                self.missing_masks.append(right)
                self._named = True
                return True
        if len(readings) != 1:
            return False
        (key, path, mask), _ = readings.popitem()
        self._add(line, key, path, mask)
        return True

    def _image(self, text: str) -> tuple[str, Path] | None:
        """Name and file of an image; a path that leads to a file names that file."""
        if text in self._images.files:
            return text, self._images.files[text]
        path = self._file(text)
        if path is not None:
            return self._known.get(path, path.stem), path
        key = self._images.find_path(text)
        return None if key is None else (key, self._images.files[key])

    def _mask(self, text: str) -> Path | None:
        path = self._file(text)
        if path is not None:
            return path
        key = self._masks.find_path(text)
        return None if key is None else self._masks.files[key]

    def _file(self, text: str) -> Path | None:
        """The image file that a path in a list leads to, relative to the dataset's folder."""
        plain = text.replace("\\", "/")
        if "/" not in plain or _ending(plain) not in _NAMED_SUFFIXES:
            return None
        relative = self._where / "/".join(
            part for part in plain.split("/") if part not in ("", ".")
        )
        return next(
            (
                path
                for path in (relative, Path(plain))
                if path.is_file() and (path is relative or path.is_absolute())
            ),
            None,
        )

    def match_affixes(self) -> None:
        """Where no image has a mask of its name, look for a beginning or ending that all masks have; and check the flags."""
        if self._flags:
            self._flags += self._own_flags
            other = sorted(set(self._flags) - {"-1", "0", "1"})
            if set(self._flags) == {"1"}:
                self.notes.append("the list's second column, 1 on every line, is not used")
            elif other:
                self.problems.append(
                    f"lines end in the numbers {listing(other)}, which name no mask; write a mask with its ending, such as "
                    f"{other[0]}.png, or keep the images' names only"
                )
            else:
                self.problems.append(
                    f"lines end in the flags {listing(sorted(self._flags))}, as VOC's lists of one class do, which are no splits; keep the "
                    "names only"
                )
        folded = self._images.folded + self._masks.folded
        if folded:
            self.notes.append(f"{folded} names match in other upper and lower case only")
        if self._images.in_subfolders:
            self.notes.append(
                f"{self._images.in_subfolders} names are those of images in subfolders, without the folder"
            )
        if (
            not self._pairs
            or self.missing_images
            or self._named
            or any(mask is not None for _, _, mask in self._pairs)
        ):
            return
        names = self.names()
        for form in (_folded, _loose):
            masks = _Names(self._masks.files, form)
            whole: dict[tuple[str, ...], str] = {}
            for rule in _rules(names, masks):
                keys = self._by_rule(names, rule, masks)
                if keys is not None:
                    affixes = _as_written(rule, names[0], keys[0]).phrase()
                    loosely = "differ in padding zeros or separators" if form is _loose else ""
                    said = " and ".join(filter(None, (affixes, loosely)))
                    whole.setdefault(keys, said or "are the same, in other folders")
            if len(whole) == 1:
                (found, said), *_ = whole.items()
                self._pairs = [
                    (key, path, self._masks.files[mask])
                    for (key, path, _), mask in zip(self._pairs, found, strict=True)
                ]
                self.missing_masks.clear()
                self.notes.append(f"masks are matched by names that {said}")
            elif whole:
                kinds = sorted(set(whole.values()))
                more = f" and {len(kinds) - 4} more" if len(kinds) > 4 else ""
                self.problems.append(
                    f"each image has several masks, with names that {' or '.join(kinds[:4])}{more}; keep one kind"
                )
                self.missing_masks.clear()
            if whole:
                return

    def _by_rule(
        self, names: Sequence[str], rule: _Affixes, masks: _Names
    ) -> tuple[str, ...] | None:
        """The masks of images by a rule; None unless each has one that no other image has."""
        found: list[str] = []
        for name in names:
            key = masks.find(name, rule)
            if key is None:
                return None
            found.append(key)
        everywhere = [masks.find(name, rule) for name in self._images.files]
        taken = Counter(key for key in everywhere if key is not None)
        if any(taken[key] > 1 for key in found) or len(set(found)) < len(found):
            return None
        # Where there are enough masks, one that is missing shows that the rule pairs others
        # wrongly.
        if None in everywhere and len(self._masks.files) >= len(everywhere):
            return None
        return tuple(found)

    def near(self, kind: str, files: Mapping[str, Path], folder: Path | None) -> str:
        """What does lie there, for the message that files are missing."""
        said = []
        if kind == "mask":
            names = [key for key, _, mask in self._pairs if mask is None]
            masks = _Names(files, _folded)
            for rule in _rules(names, masks)[:20]:
                found = [
                    (name, key) for name in names if (key := masks.find(name, rule)) is not None
                ]
                affixes = _as_written(rule, *found[0]).phrase() if found else ""
                if affixes:
                    said.append(f"{len(found)} masks have names that {affixes}")
            several = len(names) > 1 and len(files) > 1
            prefixes = (
                [_common_prefix(found) for found in (names, files)]
                if several and not said
                else ["", ""]
            )
            if prefixes[0] != prefixes[1]:
                begin = [
                    f"begin with `{prefix}`" if prefix else "have no common beginning"
                    for prefix in prefixes
                ]
                said.append(f"masks {begin[1]} where images {begin[0]}")
        missing = self.missing_images if kind == "image" else self.missing_masks
        folded = Counter(unicodedata.normalize("NFC", key).casefold() for key in files)
        unclear = [
            name
            for name in missing
            if folded[unicodedata.normalize("NFC", _stem(name)).casefold()] > 1
        ]
        if unclear:
            said.append(f"names that differ in case only are not clear: {listing(unclear, 3)}")
        index = self._images if kind == "image" else self._masks
        below = [
            f"{name} is one of {listing(keys, 4)}"
            for name in missing
            if len(keys := index.below(name)) > 1
        ]
        if below:
            said.append(f"write the folder, too: {', '.join(below[:3])}")
        if folder is not None:
            said.append(_what_lies(folder, files, masks=kind == "mask"))
        return "; ".join(said[:4])

    def names(self) -> list[str]:
        """The images' names, in order."""
        return [key for key, _, _ in self._pairs]

    def shared_masks(self, folder: Path | None) -> list[str]:
        """A line for the masks that more than one image has, or that are images themselves."""
        users: dict[Path, list[str]] = {}
        own = []
        for key, image, mask in self._pairs:
            if mask is not None:
                users.setdefault(Path(os.path.normpath(mask)), []).append(key)
                if os.path.normpath(mask) == os.path.normpath(image):
                    own.append(key)
        shared = {
            mask.relative_to(folder).as_posix()
            if folder and mask.is_relative_to(folder)
            else mask.name: keys
            for mask, keys in users.items()
            if len(keys) > 1
        }
        said = [
            f"mask {mask} is given to {len(keys)} images: {listing(keys)}"
            for mask, keys in list(shared.items())[:4]
        ]
        if len(shared) > 4:
            said.append(f"{len(shared) - 4} more masks are given to several images")
        if own:
            said.append(f"images are given as their own masks: {listing(own)}")
        return said

    def records(self) -> Iterator[Record]:
        """The pairs."""
        return (Record(key, path, mask) for key, path, mask in self._pairs if mask is not None)


@dataclasses.dataclass(frozen=True, order=True)
class _Affixes:
    """How a mask's name follows from its image's: cut a beginning and an ending, and add others."""

    cut_prefix: str = ""
    cut_suffix: str = ""
    prefix: str = ""
    suffix: str = ""

    def mask_of(self, name: str) -> str | None:
        """The mask's name; None where the image's name has not what is to be cut."""
        if not (name.startswith(self.cut_prefix) and name.endswith(self.cut_suffix)):
            return None
        core = name[len(self.cut_prefix) : len(name) - len(self.cut_suffix)]
        return f"{self.prefix}{core}{self.suffix}" if core else None

    def phrase(self) -> str:
        """Such as "end in `_mask` instead of `_sat`"."""
        said = []
        for verb, cut, added in (
            ("begin with", self.cut_prefix, self.prefix),
            ("end in", self.cut_suffix, self.suffix),
        ):
            if added:
                said.append(f"{verb} `{added}`{cut and f' instead of `{cut}`'}")
            elif cut:
                said.append(f"lack `{cut}`")
        return " and ".join(said)


class _Names:
    """Masks by the last part of their name, written in one way."""

    def __init__(self, masks: Iterable[str], form: Callable[[str], str]) -> None:
        self.form = form
        self.known: dict[str, list[str]] = {}
        for key in masks:
            self.known.setdefault(form(_base(key)), []).append(key)

    def find(self, image: str, rule: _Affixes) -> str | None:
        """The key of an image's mask by a rule: in the image's folder, or the only one in a folder above or below it."""
        name = rule.mask_of(self.form(_base(image)))
        keys = self.known.get(name, []) if name is not None else []
        same = [key for key in keys if _folders(key) == _folders(image)]
        keys = same or [key for key in keys if _are_nested(_folders(key), _folders(image))]
        return keys[0] if len(keys) == 1 else None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _loose(name: str) -> str:
    """A name without padding zeros and with one kind of separator, in lower case."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[_\-. ]+", "_", _folded(name)))


def _rules(names: Sequence[str], masks: _Names) -> list[_Affixes]:
    """The rules by which one of the first few images has a mask; the one that changes nothing comes first."""
    seen = {_Affixes()}
    for name in names[:3]:
        base = masks.form(_base(name))
        prefix, suffix = _IMAGE_PREFIX.match(base), _IMAGE_SUFFIX.search(base)
        for start in {0, prefix.end() if prefix else 0}:
            for end in {len(base), suffix.start() if suffix else len(base)}:
                core = base[start:end]
                if not core:
                    continue
                for mask in masks.known:
                    at = mask.find(core)
                    while at >= 0:
                        before, after = mask[:at], mask[at + len(core) :]
                        if _is_affix(before, -1) and _is_affix(after, 0):
                            seen.add(_Affixes(base[:start], base[end:], before, after))
                        at = mask.find(core, at + 1)
    return sorted(seen)


def _is_affix(text: str, edge: int) -> bool:
    """Whether what stands before (`edge` -1) or after (0) an image's name in its mask's is separate from it."""
    return not text or text[edge] in _SEPARATORS or _MASK_WORD.fullmatch(text) is not None


def _as_written(rule: _Affixes, image: str, mask: str) -> _Affixes:
    """The rule in the case in which one image and mask have it."""
    image, mask = (unicodedata.normalize("NFC", _base(name)) for name in (image, mask))
    written = _Affixes(
        image[: len(rule.cut_prefix)],
        image[len(image) - len(rule.cut_suffix) :],
        mask[: len(rule.prefix)],
        mask[len(mask) - len(rule.suffix) :],
    )
    folded = _Affixes(*(part.casefold() for part in dataclasses.astuple(written)))
    return written if folded == rule else rule


def _base(key: str) -> str:
    return key.rpartition("/")[2]


def _folders(key: str) -> tuple[str, ...]:
    return tuple(key.split("/")[:-1])


def _are_nested(one: Sequence[str], other: Sequence[str]) -> bool:
    return set(one) <= set(other) or set(other) <= set(one)


def _common_prefix(names: Iterable[str]) -> str:
    """What all names begin with, without a number's first digits."""
    bases = [_base(name) for name in names]
    first, last = min(bases), max(bases)
    length = next(
        (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other),
        min(map(len, (first, last))),
    )
    return first[:length].rstrip("0123456789")


def _what_lies(folder: Path, files: Mapping[str, Path], *, masks: bool = False) -> str:
    """What a folder holds, for a message."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    taken = {path.name for path in files.values()}
    found = entries(folder)
    others = Counter(
        _ending(entry.name) or "no ending"
        for entry in found
        if not entry.is_dir() and entry.name not in taken
    )
    said = []
    if files:
        said.append(
            f"{folder.name}/ holds {len(files)} such files, as {next(iter(files.values())).name}"
        )
    for ending, count in others.most_common(3):
        lossy = (
            ", which a mask must not be" if masks and ending in (".jpg", ".jpeg", ".webp") else ""
        )
        said.append(f"{count} {'file ends' if count == 1 else 'files end'} in {ending}{lossy}")
    for entry in found:
        if entry.is_dir():
            count = image_count(folder / entry.name)
            if count:
                said.append(f"the subfolder {entry.name}/ holds {count} images")
    return "; ".join(said[:6]) or f"{folder.name}/ is empty"


def _is_header(line: str) -> bool:
    words = [word.strip("\"'").lower() for word in re.split(r"[,;\s]+", line) if word]
    return all(_HEADER.fullmatch(word) for word in words)


def _clean(text: str) -> str:
    text = text.strip().rstrip(",;").strip()
    return (
        text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    )


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _stem(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in _NAMED_SUFFIXES else name
