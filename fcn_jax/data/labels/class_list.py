"""Class lists as people and annotation tools write them.

A class list says which classes there are, and what the stored values of the masks mean. A file is
recognized by its contents, not by its name:

    classes.txt  one class per line: `name` or `name R G B`; also `name #RRGGBB`, `R G B name`,
                 `N name`, `name N`
    labelme      `__ignore__` (stored 255), `_background_` (stored 0) and the names
    CVAT         `name:R,G,B:parts:actions`
    CSV          columns with or without a header: name, value, R, G, B or #RRGGBB (CamVid,
                 DeepGlobe, Roboflow, ADE20K), `id` and `trainId` (Cityscapes); or only names
                 under a header
    JSON         a list of names or of {"name", "id" or "trainId", "color", "ignoreInEval"}
                 (Cityscapes), {"labels": [...]} (Mapillary), {"classes": [...]} (Supervisely),
                 {"label_map": ...} (Datumaro), id -> name, name -> id or color

Files that hold no class list for masks (COCO, VIA, Label Studio, YOLO and so on) are refused by
the name of their format.

The fourth number of a color is its alpha if it is 255, or 255 and 0. A class with the number 255
or -1 and a name such as `ignore` or `unlabeled` is void. A class without a train ID, or with the
train ID 255 or -1, is void too.

Without numbers, the position in the list is the stored value. Classes are numbered without gaps in
the order of their stored values. `void` may stand anywhere: pixels with its stored value or color
count neither in the loss nor in a metric.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from fcn_jax.data.labels.class_list_entries import (
    ADVICE,
    UNCERTAIN,
    UNUSED,
    Entry,
    Ids,
    Parsed,
    RefusedError,
)
from fcn_jax.data.labels.class_list_json import parse_json
from fcn_jax.data.labels.class_list_text import IMAGE, LISTS_IMAGES, parse_text
from fcn_jax.data.labels.label_map import Color, LabelMap
from fcn_jax.data.labels.palette import VOC_BORDER, voc_palette
from fcn_jax.errors import DataError, listing
from fcn_jax.plugins.api import IGNORE_INDEX, Classes
from fcn_jax.runtime.text_file import read_text

OWN_NAME = "classes.txt"
FILE_NAMES = (
    OWN_NAME, "labels.txt", "labelmap.txt", "label_map.txt", "label_colors.txt",
    "objectinfo150.txt", "object150_info.csv", "class_dict.csv", "class_dict_seg.csv",
    "_classes.csv", "classes.csv", "labels.csv", "class_names.txt", "class_names.csv",
    "classes.json", "labels.json", "label_map.json", "dataset_meta.json", "meta.json",
    "config.json", "id2label.json",
)  # fmt: skip
"""Names, in lower case, of the files in which a class list is looked for, in this order."""

_SHARED_NAMES = ("config.json", "meta.json", "dataset_meta.json")
"""Names that other programs use too: such a file needs a form that an annotation tool writes."""

_MAX_CLASSES = 255
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_BORDERS = (
    "border", "boundary", "contour", "dontcare", "don't care", "dont care", "nolabel", "no label",
)  # fmt: skip
_NOT_LISTS = ("readme", "license", "train", "val", "test", "trainval", "requirements", "notes")


@dataclasses.dataclass(frozen=True, eq=False)
class ClassList:
    """The classes of a dataset, and what the stored values of its masks mean.

    Attributes:
        path: the file.
        kind: the format of the file, such as "CVAT label map".
        classes: the classes, with VOC's colors if the file has none.
        labels: the labels of the stored values and colors.
        notes: the assumptions that were made, one line each.
    """

    path: Path
    kind: str
    classes: Classes
    labels: LabelMap
    notes: tuple[str, ...] = ()


def read_class_list(path: Path, *, ids: Ids | None = None) -> ClassList:
    """Read a class list in one of the formats that the module's docstring lists.

    Args:
        path: the file.
        ids: which number the masks store, for a file that gives each class both an `id` and a
            `trainId`.

    Raises:
        DataError: the file is missing, is something else, or contradicts itself. All problems are
            reported at once.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"{path}: cannot read the list of classes ({reason}); {ADVICE}") from error
    text = _plain(text)
    name = path.name.lower()
    is_named = name not in _SHARED_NAMES and (
        name in FILE_NAMES or re.search("class|label|categor|names", name) is not None
    )
    try:
        is_json = text.strip()[:1] in ("{", "[")
        parsed = parse_json(text.strip(), ids, is_named) if is_json else parse_text(text, ids)
        images = [entry for entry in parsed.entries if re.search(rf"{IMAGE}$", entry.name)]
        if 2 * len(images) > len(parsed.entries):
            raise RefusedError(LISTS_IMAGES)
    except RefusedError as refusal:
        raise DataError(f"{path}: {refusal}") from refusal
    return _build(path, parsed)


def class_list_of(lines: Sequence[str]) -> ClassList:
    """The class list that the lines of `classes.txt` make, as in the setting `data.classes`.

    Raises:
        DataError: the lines are no class list, or contradict themselves. All problems are reported
            at once.
    """
    path = Path("data.classes")
    try:
        found = _build(path, parse_text(_plain("\n".join(lines)), None))
    except RefusedError as refusal:
        raise DataError(f"{path}: {refusal}") from refusal
    return dataclasses.replace(found, kind=str(path), notes=())


def _plain(text: str) -> str:
    """Full-width digits become ASCII, names have composed form, invisible characters go."""
    text = unicodedata.normalize("NFC", text.translate(_FULL_WIDTH))
    return "".join(character for character in text if unicodedata.category(character) != "Cf")


def find_class_list(root: Path, *, ids: Ids | None = None) -> ClassList:
    """Find the class list in a dataset's folder, under one of `FILE_NAMES` in any case.

    Args:
        root: the folder.
        ids: see `read_class_list`.

    Raises:
        DataError: there is no class list, none can be read, or several disagree.
    """
    files = {p.name.lower(): p for p in sorted(root.iterdir()) if p.is_file()}
    paths = [files[name] for name in FILE_NAMES if name in files]
    lists, failures = [], []
    for path in paths:
        try:
            lists.append(read_class_list(path, ids=ids))
        except DataError as error:
            # A broken list of our own name, or a broken only list, has to be corrected.
            if path.name.lower() == OWN_NAME:
                raise
            failures.append(error)
    if not lists:
        if all(path.name.lower() in _SHARED_NAMES for path in paths):
            raise DataError(
                f"{root}: {OWN_NAME} is missing here; {ADVICE}, in the order of the labels"
                f"{_candidates(root)}"
            )
        raise failures[0]
    own = [found for found in lists if found.path.name.lower() == OWN_NAME]
    first = (own or [found for found in lists if found.labels.colors is not None] or lists)[0]
    known = {name.lower() for name in first.classes.names}
    others: list[ClassList] = []
    foreign: list[ClassList] = []
    for found in lists:
        if found is not first:
            shared = known & {name.lower() for name in found.classes.names}
            (others if shared or not own else foreign).append(found)
    name = first.path.name
    differ = [found.path.name for found in others if not _agree(first, found)]
    if differ:
        raise DataError(
            f"{root}: {name} and {listing(differ)} list different classes, values or colors; keep "
            "the one that the masks follow"
        )
    groups = {"says the same": others, "has none of its names and is not used": foreign}
    notes = [
        f"{name} is the list of classes; {listing(found.path.name for found in group)} {said}"
        for said, group in groups.items()
        if group
    ]
    return dataclasses.replace(first, notes=(*first.notes, *notes))


def has_class_list(root: Path, *, ids: Ids | None = None) -> bool:
    """Whether a folder has a file that `find_class_list` takes as a class list, or as a broken one.

    Args:
        root: the folder.
        ids: see `read_class_list`.
    """
    for path in root.iterdir():
        name = path.name.lower()
        if name in FILE_NAMES and path.is_file():
            if name not in _SHARED_NAMES:
                return True
            with contextlib.suppress(DataError):
                read_class_list(path, ids=ids)
                return True
    return False


def _candidates(root: Path) -> str:
    """A phrase on the other files of a folder that has no class list; empty if there are none."""
    endings = (".txt", ".csv", ".json", ".yaml", ".yml", ".xml", ".pbtxt")
    paths = [p for p in sorted(root.glob("[!.]*")) if p.suffix.lower() in endings and p.is_file()]
    said = []
    for path in paths[:12]:
        if path.stem.lower() in _NOT_LISTS:
            continue
        try:
            count = len(read_class_list(path).classes)
            said.append(f"{path.name} could be one ({count} classes): rename it to {OWN_NAME}")
        except DataError as error:
            said.append(str(error).removeprefix(f"{path.parent}/"))
    return f". {'; '.join(said)}" if said else ""


def _agree(one: ClassList, other: ClassList) -> bool:
    colors = one.labels.colors, other.labels.colors
    return (
        one.classes.names == other.classes.names
        and dict(one.labels.values) == dict(other.labels.values)
        and (None in colors or colors[0] == colors[1])
    )


def _build(path: Path, parsed: Parsed) -> ClassList:
    """Number the classes, and report all problems of the entries."""
    problems = list(parsed.problems)
    numbered = any(entry.value is not None for entry in parsed.entries)
    entries = _with_values(parsed.entries, numbered, problems)
    problems += _entry_problems(entries)
    classes = sorted(
        (entry for entry in entries if not entry.is_void and entry.value is not None),
        key=lambda entry: entry.value or 0,
    )
    void = [entry for entry in entries if entry.is_void]
    if not 1 <= len(classes) <= _MAX_CLASSES and not (problems and not classes):
        problems.append(
            f"{len(classes)} classes and {len(void)} void lines; there must be 1 to {_MAX_CLASSES} "
            f"classes; {ADVICE}"
        )
    given = [entry for entry in entries if entry.color is not None]
    # A void without a color, as some tools list it, has no pixels in masks that are in colors.
    colorless = [e.name for e in entries if e.color is None and not (numbered and e.is_void)]
    if given and colorless:
        problems.append(
            f"only some classes have colors; give one to {listing(colorless)} too, or to none"
        )
    if problems:
        raise DataError(f"{path}: {listing(problems, separator='; ')}")
    labeled = [*enumerate(classes), *((IGNORE_INDEX, entry) for entry in void)]
    values = {entry.value: label for label, entry in labeled if entry.value is not None}
    assumed = IGNORE_INDEX not in values
    values.setdefault(IGNORE_INDEX, IGNORE_INDEX)
    colors = {entry.color: label for label, entry in labeled if entry.color is not None}
    # White listed as void says in colors what 255 says in labels.
    assumed &= colors.get((255, 255, 255)) != IGNORE_INDEX
    listed = tuple(entry.color for entry in classes if entry.color is not None)
    palette = listed if colors else voc_palette(len(classes))
    names = tuple(entry.name for entry in classes)
    return ClassList(
        path,
        parsed.kind,
        Classes(names, palette),
        LabelMap(len(classes), values, colors or None, assumed),
        _notes(path.name, parsed, classes, len(void)),
    )


def _with_values(entries: Sequence[Entry], numbered: bool, problems: list[str]) -> list[Entry]:
    """The entries with their stored values; adds the problems with the numbers."""
    if not numbered:
        return [dataclasses.replace(entry, value=at) for at, entry in enumerate(entries)]
    missing = [e for e in entries if e.value is None]
    if missing:
        bare = [entry.name for entry in missing if not (entry.is_void and entry.color)]
        if bare:
            problems.append(f"only some classes have numbers; give one to {listing(bare)} too")
        return list(entries)
    # Tools give pixels that do not count the number 255 or -1, and such a name.
    kept = []
    for entry in entries:
        named_void = entry.is_uncertain or entry.name.lower().strip("_") == "void"
        if named_void and entry.value in UNUSED:
            value = None if entry.value == -1 else entry.value
            entry = dataclasses.replace(entry, void=True, value=value)
        if entry.value is not None or entry.color is not None or not entry.void:
            kept.append(entry)
    return kept


def _entry_problems(entries: Sequence[Entry]) -> list[str]:
    problems: list[str] = []
    names: dict[str, Entry] = {}
    values: dict[int, Entry] = {}
    colors: dict[Color, Entry] = {}
    backgrounds: list[Entry] = []
    for entry in entries:
        name, value, color = entry.name, entry.value, entry.color
        found = []
        if not any(character.isalnum() for character in name):
            found.append("a class without a name")
        elif any(unicodedata.category(c) == "Cc" for c in name) or len(name) > 200:
            found.append(f"{name[:40]!r} is not a valid name of a class")
        elif re.fullmatch(r"[\d.,]+(\s+[\d.,]+)+", name):
            found.append(f"{name[:40]!r} holds numbers only; a class has a name")
        elif not entry.is_void and name in names:
            found.append(f"class '{name[:60]}' stands twice")
        if value is not None:
            if not 0 <= value <= 65535:
                found.append(f"value {value} of '{name}' is not one of 0 to 65535")
            elif value in values:
                found.append(f"value {value} is already '{values[value].name}'")
            values.setdefault(value, entry)
        if color is not None:
            if not all(0 <= part <= 255 for part in color):
                found.append(f"color {color} has a value over 255")
            elif color in colors and not (entry.is_void and colors[color].is_void):
                found.append(f"color {color} is already '{colors[color].name}'")
            colors.setdefault(color, entry)
        names.setdefault(name, entry)
        if not entry.is_void and name.lower().strip("_ ") in ("background", "bg"):
            backgrounds.append(entry)
        problems += [f"{entry.where}: {problem}" if entry.where else problem for problem in found]
    if len({entry.name for entry in backgrounds}) > 1:
        listed = listing(f"'{e.name}'{f' ({e.where})' if e.where else ''}" for e in backgrounds)
        problems.append(
            f"the background is counted twice, as {listed}, which shifts the labels after it by "
            "one; keep one, and call pixels that do not count `void`"
        )
    return problems


def _notes(file: str, parsed: Parsed, classes: Sequence[Entry], void: int) -> tuple[str, ...]:
    notes = []
    if parsed.kind != OWN_NAME:
        said = f", {void} void" if void else ""
        read_as = f"{file} is read as {parsed.kind}: {len(classes)} classes{said}"
        notes.append("; ".join([read_as, *parsed.notes]))
    elif parsed.notes:
        notes.append(f"{file}: {'; '.join(parsed.notes)}")
    uncertain = [
        entry.name
        for entry in classes
        if entry.name.lower().strip("_") in (*UNCERTAIN, *_BORDERS) or entry.color == VOC_BORDER
    ]
    if uncertain:
        notes.append(
            f"{file}: {listing(uncertain)} counts as a class; call it `void` if its pixels are not "
            "to count"
        )
    return tuple(notes)
