"""Lists of classes as people and annotation tools write them: which classes there are, and what the masks' stored values mean.

A file is known by its contents, whatever its name:

    classes.txt             a class a line: `name` or `name R G B`; also `name #RRGGBB`, `R G B name`, `N name`, `name N`
    labelme                 `__ignore__` (stored 255), `_background_` (stored 0) and the names
    CVAT                    `name:R,G,B:parts:actions`
    CSV                     columns with or without a header: name, value, R, G, B or #RRGGBB (CamVid, DeepGlobe, Roboflow, ADE20K),
                            `id` and `trainId` (Cityscapes); or names alone under a header
    JSON                    a list of names or of {"name", "id" or "trainId", "color", "ignoreInEval"} (Cityscapes), {"labels": [...]}
                            (Mapillary), {"classes": [...]} (Supervisely), {"label_map": ...}
                            (Datumaro), id -> name, name -> id or color

Files that list no classes of masks (COCO, VIA, Label Studio, YOLO and so on) are refused by name.

A fourth number of a color is its alpha where it is 255, or 255 and 0. A class numbered 255 or -1
and named `ignore`, `unlabeled` or so is void, and so is one without a train ID, or with the train
ID 255 or -1.

Without numbers, the position in the list is the stored value. Classes are numbered without gaps in
the order of their stored values. `void` may stand anywhere: its stored value, or its color, is what
neither the loss nor a metric counts.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from fcn_jax.data.labels.label_map import Color, LabelMap
from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.errors import DataError, listing
from fcn_jax.plugins.api import IGNORE_INDEX, Classes
from fcn_jax.runtime.text_file import read_text

FILE_NAMES = (
    *(
        "classes.txt",
        "labels.txt",
        "labelmap.txt",
        "label_map.txt",
        "label_colors.txt",
        "objectinfo150.txt",
        "object150_info.csv",
    ),
    *(
        "class_dict.csv",
        "class_dict_seg.csv",
        "_classes.csv",
        "classes.csv",
        "labels.csv",
        "class_names.txt",
        "class_names.csv",
    ),
    *(
        "classes.json",
        "labels.json",
        "label_map.json",
        "dataset_meta.json",
        "meta.json",
        "config.json",
        "id2label.json",
    ),
)
"""Names under which a list of classes is looked for, in lower case; our own first."""

_OTHER_JSON = ("config.json", "meta.json", "dataset_meta.json")
"""Names of `FILE_NAMES` that other programs give to other files: they count only in the forms that a tool writes."""

Ids = Literal["id", "trainId"]

_MAX_CLASSES = 255
_ADVICE = "write one class a line: `name`, or `name R G B`"
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_HEX = r"(?:#|0[xX])[0-9a-fA-F]{6}"
_IMAGE = r"\.(?:jpe?g|png|bmp|tiff?|webp|gif)"
_IMAGES = f"it lists images, not classes; {_ADVICE}"
_IGNORE = "__ignore__"
_DOUBTFUL = ("ignore", "ignored", "unlabeled", "unlabeled", "unknown", "undefined")
_BORDERS = (
    "border",
    "boundary",
    "contour",
    "dontcare",
    "don't care",
    "dont care",
    "nolabel",
    "no label",
)
_VOC_BORDER = (224, 224, 192)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassList:
    """The classes of a dataset, and what the stored values of its masks mean.

    Attributes:
        path: the file.
        kind: what it was read as, such as "CVAT label map".
        classes: the classes; without colors in the file they have VOC's.
        labels: stored values and colors to labels.
        notes: what was assumed, a line each.
    """

    path: Path
    kind: str
    classes: Classes
    labels: LabelMap
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A line, row or object. `value` is None where the file has no numbers; `void` where it says itself that this is no class."""

    name: str
    value: int | None = None
    color: Color | None = None
    void: bool = False
    where: str = ""


@dataclasses.dataclass
class _Parsed:
    kind: str
    entries: list[_Entry]
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


class _RefusedError(Exception):
    """Why a file is no list of classes, and what to do."""


def read_class_list(path: Path, *, ids: Ids | None = None) -> ClassList:
    """Read a list of classes; see the module's docstring for what it may be.

    Args:
        path: the file.
        ids: which number the masks store, for a file that gives each class both an `id` and a
            `trainId`.

    Raises:
        DataError: the file is missing, is something else, or contradicts itself. All that is wrong
            is reported at once.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"{path}: cannot read the list of classes ({reason}); {_ADVICE}") from error
    try:
        parsed = _parse(_without_invisible(text), ids, _is_named_as_list(path))
        files = sum(
            re.search(rf"{_IMAGE}$", entry.name, re.IGNORECASE) is not None
            for entry in parsed.entries
        )
        if 2 * files > len(parsed.entries):
            raise _RefusedError(_IMAGES)
    except _RefusedError as refusal:
        raise DataError(f"{path}: {refusal}") from refusal
    return _build(path, parsed)


def find_class_list(root: Path, *, ids: Ids | None = None) -> ClassList:
    """The list of classes that lies in a dataset's folder, under one of `FILE_NAMES` in any case.

    Args:
        root: the folder.
        ids: as `read_class_list` has it.

    Raises:
        DataError: there is none, none can be read, or several disagree.
    """
    present = {
        path.name.lower(): path
        for path in sorted(root.iterdir())
        if path.is_file() and path.name.lower() in FILE_NAMES
    }
    paths = [present[name] for name in FILE_NAMES if name in present]
    if not paths:
        raise DataError(
            f"{root}: classes.txt is missing here; {_ADVICE}, in the order of the labels{_near(root)}"
        )
    lists, failures = [], []
    for path in paths:
        try:
            lists.append(read_class_list(path, ids=ids))
        except DataError as error:
            # A broken list of our own name, or one that nothing else stands in for, must be mended.
            if path.name.lower() == "classes.txt":
                raise
            failures.append(error)
    if not lists:
        if all(path.name.lower() in _OTHER_JSON for path in paths):
            raise DataError(
                f"{root}: classes.txt is missing here; {_ADVICE}, in the order of the labels{_near(root)}"
            )
        raise failures[0]
    first = next((found for found in lists if found.path.name.lower() == "classes.txt"), None)
    first = first or next((found for found in lists if found.labels.colors is not None), lists[0])
    others = [found for found in lists if found is not first]
    foreign = []
    if first.path.name.lower() == "classes.txt":
        known = {name.lower() for name in first.classes.names}
        foreign = [
            found
            for found in others
            if known.isdisjoint(name.lower() for name in found.classes.names)
        ]
        others = [found for found in others if found not in foreign]
    differ = [found.path.name for found in others if not _agree(first, found)]
    if differ:
        raise DataError(
            f"{root}: {first.path.name} and {listing(differ)} list different classes, values or colors; keep the one that the masks follow"
        )
    notes = []
    if others:
        notes.append(
            f"{first.path.name} is the list of classes; {listing(found.path.name for found in others)} says the same"
        )
    if foreign:
        unused = listing(found.path.name for found in foreign)
        notes.append(
            f"{first.path.name} is the list of classes; {unused} has none of its names and is not used"
        )
    return dataclasses.replace(first, notes=(*first.notes, *notes))


def _near(root: Path) -> str:
    """What other files of the folder are, for the message that it has no list of classes."""
    endings = (".txt", ".csv", ".json", ".yaml", ".yml", ".xml", ".pbtxt")
    paths = [
        path
        for path in sorted(root.iterdir())
        if path.suffix.lower() in endings and not path.name.startswith(".") and path.is_file()
    ]
    said = []
    for path in paths[:12]:
        if path.stem.lower() in (
            "readme",
            "license",
            "train",
            "val",
            "test",
            "trainval",
            "requirements",
            "notes",
        ):
            continue
        try:
            found = read_class_list(path)
            said.append(
                f"{path.name} could be one ({len(found.classes)} classes): rename it to classes.txt"
            )
        except DataError as error:
            said.append(str(error).removeprefix(f"{path.parent}/"))
    return f". {'; '.join(said)}" if said else ""


def _agree(one: ClassList, other: ClassList) -> bool:
    if one.classes.names != other.classes.names or dict(one.labels.values) != dict(
        other.labels.values
    ):
        return False
    colors = one.labels.colors, other.labels.colors
    return None in colors or colors[0] == colors[1]


def _build(path: Path, parsed: _Parsed) -> ClassList:
    """Number the classes, and report all that is wrong with the entries."""
    problems, entries = list(parsed.problems), parsed.entries
    numbered = [entry for entry in entries if entry.value is not None]
    if numbered and len(numbered) < len(entries):
        bare = [
            entry
            for entry in entries
            if entry.value is None and not (_is_void(entry) and entry.color)
        ]
        if bare:
            problems.append(
                f"only some classes have numbers; give one to {listing(entry.name for entry in bare)} too"
            )
    elif not numbered:
        entries = [
            dataclasses.replace(entry, value=position) for position, entry in enumerate(entries)
        ]
    else:
        # Tools give pixels that do not count the number 255 or -1, and such a name.
        entries = [
            dataclasses.replace(entry, void=True, value=None if entry.value == -1 else entry.value)
            if entry.value in (IGNORE_INDEX, -1)
            and entry.name.lower().strip("_") in (*_DOUBTFUL, "void")
            else entry
            for entry in entries
        ]
        entries = [
            entry
            for entry in entries
            if entry.value is not None or entry.color is not None or not entry.void
        ]
    problems += _entry_problems(entries)
    classes = sorted(
        (entry for entry in entries if not _is_void(entry) and entry.value is not None),
        key=lambda entry: entry.value or 0,
    )
    void = [entry for entry in entries if _is_void(entry)]
    if not 1 <= len(classes) <= _MAX_CLASSES and not (problems and not classes):
        problems.append(
            f"{len(classes)} classes and {len(void)} void lines; there must be 1 to {_MAX_CLASSES} classes; {_ADVICE}"
        )
    given = [entry for entry in entries if entry.color is not None]
    if given and len(given) < len(entries):
        # A void without a color, as some tools list it, has no pixels in masks that are in colors.
        colorless = [
            entry.name
            for entry in entries
            if entry.color is None and not (numbered and _is_void(entry))
        ]
        if colorless:
            problems.append(
                f"only some classes have colors; give one to {listing(colorless)} too, or to none"
            )
    if problems:
        raise DataError(
            f"{path}: {'; '.join(problems[:12])}{f' and {len(problems) - 12} more' if len(problems) > 12 else ''}"
        )
    label = {id(entry): number for number, entry in enumerate(classes)} | {
        id(entry): IGNORE_INDEX for entry in void
    }
    values = {entry.value: label[id(entry)] for entry in entries if entry.value is not None}
    assumed = IGNORE_INDEX not in values
    if assumed:
        values[IGNORE_INDEX] = IGNORE_INDEX
    colors = {entry.color: label[id(entry)] for entry in given if entry.color is not None} or None
    # White listed as void says in colors what 255 says in labels.
    assumed &= (colors or {}).get((255, 255, 255)) != IGNORE_INDEX
    shown = (
        tuple(entry.color for entry in classes if entry.color is not None)
        if colors
        else voc_palette(len(classes))
    )
    names = tuple(entry.name for entry in classes)
    notes = []
    if parsed.kind != "classes.txt":
        said = f", {len(void)} void" if void else ""
        notes.append(
            "; ".join(
                [
                    f"{path.name} is read as {parsed.kind}: {len(classes)} classes{said}",
                    *parsed.notes,
                ]
            )
        )
    elif parsed.notes:
        notes.append(f"{path.name}: {'; '.join(parsed.notes)}")
    doubtful = [
        entry.name
        for entry in classes
        if entry.name.lower().strip("_") in (*_DOUBTFUL, *_BORDERS) or entry.color == _VOC_BORDER
    ]
    if doubtful:
        notes.append(
            f"{path.name}: {listing(doubtful)} counts as a class; call it `void` if its pixels are not to count"
        )
    return ClassList(
        path,
        parsed.kind,
        Classes(names, shown),
        LabelMap(len(classes), values, colors, assumed),
        tuple(notes),
    )


def _entry_problems(entries: Sequence[_Entry]) -> list[str]:
    problems: list[str] = []
    names: dict[str, _Entry] = {}
    values: dict[int, _Entry] = {}
    colors: dict[Color, _Entry] = {}
    for entry in entries:
        at = f"{entry.where}: " if entry.where else ""
        if not any(character.isalnum() for character in entry.name):
            problems.append(f"{at}a class without a name")
        elif (
            any(unicodedata.category(character) == "Cc" for character in entry.name)
            or len(entry.name) > 200
        ):
            problems.append(f"{at}{entry.name[:40]!r} is no name of a class")
        elif re.fullmatch(r"[\d.,]+(\s+[\d.,]+)+", entry.name):
            problems.append(f"{at}{entry.name[:40]!r} holds numbers only; a class has a name")
        elif not _is_void(entry) and entry.name in names:
            problems.append(f"{at}class '{entry.name[:60]}' stands twice")
        if entry.value is not None:
            if not 0 <= entry.value <= 65535:
                problems.append(
                    f"{at}value {entry.value} of '{entry.name}' is not one of 0 to 65535"
                )
            elif entry.value in values:
                problems.append(f"{at}value {entry.value} is already '{values[entry.value].name}'")
            values.setdefault(entry.value, entry)
        if entry.color is not None:
            if not all(0 <= part <= 255 for part in entry.color):
                problems.append(f"{at}color {entry.color} has a value over 255")
            elif entry.color in colors and not (_is_void(entry) and _is_void(colors[entry.color])):
                problems.append(f"{at}color {entry.color} is already '{colors[entry.color].name}'")
            colors.setdefault(entry.color, entry)
        names.setdefault(entry.name, entry)
    return problems


def _is_void(entry: _Entry) -> bool:
    return entry.void or entry.name.lower() in ("void", _IGNORE)


def _without_invisible(text: str) -> str:
    """Full-width digits and punctuation as ASCII, names in composed form, without characters that show nothing."""
    plain = unicodedata.normalize("NFC", text.translate(_FULL_WIDTH))
    return "".join(character for character in plain if unicodedata.category(character) != "Cf")


# What a text is


def _is_named_as_list(path: Path) -> bool:
    """Whether the name says that the file lists classes, so that any JSON table in it does."""
    name = path.name.lower()
    return name not in _OTHER_JSON and (
        name in FILE_NAMES or re.search("class|label|categor|names", name) is not None
    )


def _parse(text: str, ids: Ids | None, is_named: bool) -> _Parsed:
    stripped = text.strip()
    if stripped[:1] in ("{", "["):
        return _parse_json(stripped, ids, is_named)
    if stripped.startswith("<"):
        raise _RefusedError(f"it is XML or HTML, not a list of classes; {_ADVICE}")
    lines = [
        (number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    if lines and re.fullmatch(r"sep=.?", lines[0][1]):
        lines = lines[1:]  # Excel's
    files = sum(
        re.search(rf"{_IMAGE}(?=$|[\s,;\"'])", line, re.IGNORECASE) is not None for _, line in lines
    )
    if 2 * files > len(lines):
        raise _RefusedError(_IMAGES)
    if any(re.match(r"item\s*\{", line) for _, line in lines):
        raise _RefusedError(
            f"it is a TensorFlow label map (pbtxt), not a list of classes; {_ADVICE}"
        )
    if any(re.match(r"names\s*:", line) for _, line in lines):
        raise _RefusedError(
            f"it is YAML, as YOLO's data.yaml; YOLO's labels are polygons or boxes: export masks as images, then {_ADVICE}"
        )
    if lines and all(re.match(r"-\s", line) for _, line in lines):
        raise _RefusedError(f"it is a YAML list; {_ADVICE}, without the dash")
    long = [str(number) for number, line in lines if len(line) > 500]
    if long:
        raise _RefusedError(
            f"lines {listing(long)} are longer than 500 characters, which no list of classes is; {_ADVICE}"
        )
    cvat = _parse_cvat(lines)
    if cvat is not None:
        return cvat
    hexes = [number for number, line in lines if re.match(rf"{_HEX}[\s,;]+\S", line)]
    if 1 < len(hexes) < len(lines):
        raise _RefusedError(
            f"lines {listing(map(str, hexes))} begin with a color, the others do not; write `name #RRGGBB` (a line that begins with "
            "# is a comment)"
        )
    if not hexes or len(hexes) < len(lines):
        lines = [(number, line) for number, line in lines if not line.startswith(("#", "//"))]
    semicolons = bool(lines) and all(
        ";" in line for _, line in lines
    )  # a table whose first field may be empty
    odd = [
        f"{number} ({line[:40]!r})"
        for number, line in lines
        if (line.startswith(("%", "--", "!", "/*")) or (line.startswith(";") and not semicolons))
        and any(character.isalnum() for character in line)
    ]
    if odd:
        raise _RefusedError(
            f"lines {listing(odd)} look like comments; begin comments with #, or put a class's name in quotes"
        )
    lines, said = _without_heading(lines)
    parsed = _parse_rest(lines, ids)
    parsed.notes = [*said, *parsed.notes]
    return parsed


_HEADINGS = {
    *("name", "names", "class", "classes", "label", "labels", "category", "categories"),
    *(
        "classname",
        "classnames",
        "labelname",
        "labelnames",
        "categoryname",
        "categorynames",
        "classlabel",
        "classlabels",
    ),
}


def _without_heading(lines: list[tuple[int, str]]) -> tuple[list[tuple[int, str]], list[str]]:
    """The lines without the header of a table of one column, and what is said about it."""
    if len(lines) < 2:
        return lines, []
    first = _key(lines[0][1].rstrip(",;"))
    numbers = first in ("id", "ids", "value", "values", "index") and all(
        _number(line) is not None for _, line in lines[1:]
    )
    if first not in _HEADINGS and not numbers:
        return lines, []
    number, line = lines[0]
    if _unquoted(line) == line:
        return lines[1:], [
            f"line {number}, {line!r}, is taken as a header, not as a class (put it in quotes if it is a class)"
        ]
    if all(_unquoted(other) != other for _, other in lines):
        raise _RefusedError(
            f"line {number}, {line}, can be a header or a class, since all lines are in quotes; delete it if it is a header, else take "
            "the quotes off another line"
        )
    return lines, []


def _parse_rest(lines: Sequence[tuple[int, str]], ids: Ids | None) -> _Parsed:
    if any(
        name == "__ignore__" or name == "_background_"
        for name in (line.strip("\"'") for _, line in lines)
    ):
        return _parse_labelme(lines)
    return _parse_table(lines, ids) or _parse_lines(lines)


def _parse_cvat(lines: Sequence[tuple[int, str]]) -> _Parsed | None:
    """CVAT's and Datumaro's `labelmap.txt`."""
    header = any(re.match(r"#\s*label\s*:\s*color_rgb", line) for _, line in lines)
    rows = [(number, line) for number, line in lines if not line.startswith("#")]
    pattern = re.compile(r"(.*?):\s*(?:(\d+)\s*,\s*(\d+)\s*,\s*(\d+))?\s*:([^:]*):([^:]*)")
    found = [pattern.fullmatch(line) for _, line in rows]
    if not rows or not (header or any(found)):
        return None
    parsed = _Parsed("CVAT label map", [])
    for (number, line), match in zip(rows, found, strict=True):
        if match is None:
            parsed.problems.append(
                f"line {number}: {line[:60]!r} is not `name:R,G,B:parts:actions` as in the rest of CVAT's label map"
            )
            continue
        name, red, green, blue = match.group(1).strip(), *match.group(2, 3, 4)
        color = None if red is None else (int(red), int(green), int(blue))
        parsed.entries.append(
            _Entry(_unquoted(name), None, color, name == _IGNORE, f"line {number}")
        )
    return parsed


def _parse_labelme(lines: Sequence[tuple[int, str]]) -> _Parsed:
    """Parse labelme's `labels.txt`: the first line is label -1, which its masks store as 255."""
    names = [(number, line.strip("\"'")) for number, line in lines]
    ignore = names[0][1] == _IGNORE
    parsed = _Parsed("labelme's labels", [])
    for position, (number, name) in enumerate(names):
        if name == _IGNORE and position > 0:
            parsed.problems.append(
                f"line {number}: labelme has {_IGNORE} first; move it there, or call it void"
            )
        value = position - ignore
        where = f"line {number}"
        parsed.entries.append(
            _Entry(_IGNORE, 255, None, True, where)
            if value < 0
            else _Entry(name, value, None, False, where)
        )
    return parsed


# Tables

_NAME = {
    "name",
    "class",
    "label",
    "classname",
    "labelname",
    "category",
    "classes",
    "readable",
    "title",
    "labels",
    "classlabel",
}
_VALUE = {
    "id",
    "index",
    "idx",
    "value",
    "pixelvalue",
    "labelid",
    "classid",
    "number",
    "code",
    "pixel",
    "classindex",
    "label",
    "class",
}
_CHANNELS = ({"r", "red"}, {"g", "green"}, {"b", "blue"})
_COLOR = {
    "color",
    "rgb",
    "hex",
    "colorrgb",
    "rgbcolor",
    "hexcolor",
    "hexcode",
    "colorhex",
    "colorcode",
    "rgbvalues",
}
_IGNORED = {"ignoreineval", "ignore"}


def _parse_table(lines: Sequence[tuple[int, str]], ids: Ids | None) -> _Parsed | None:
    """Rows of a CSV, or None where the text is none."""
    for delimiter in (",", ";", "\t"):
        counts = [line.count(delimiter) for _, line in lines]
        if not counts or not all(counts):
            continue
        rows = []
        for number, line in lines:
            fields = next(
                csv.reader(io.StringIO(line), delimiter=delimiter, skipinitialspace=True), []
            )
            rows.append((number, [field.strip() for field in fields]))
        while rows and all(len(row) > 1 and not row[-1] for _, row in rows):
            rows = [(number, row[:-1]) for number, row in rows]
        if all(len(row) == 1 for _, row in rows):
            return _parse_lines([(number, row[0]) for number, row in rows])
        if delimiter == "\t" and not any(_role(field) for field in rows[0][1]):
            return None  # tabs instead of spaces
        if delimiter == "," and all(
            count in (2, 3) and _split(number, line).color_only == count + 1
            for (number, line), count in zip(lines, counts, strict=True)
        ):
            return None  # `name R,G,B` or `name R,G,B,A`
        return _parse_rows(rows, ids)
    bare = [
        (number, line)
        for number, line in lines
        if _unquoted(line) == line and not _color_at_end(line)
    ]
    commas = [number for number, line in bare if re.search(r"[,;]", line.rstrip(",;"))]
    if commas and len(commas) < len(lines) <= 2 * len(commas):
        raise _RefusedError(
            f"lines {listing(map(str, commas))} hold commas or semicolons and others do not; write either a table with the same columns on "
            f"every line, or {_ADVICE.removeprefix('write ')}"
        )
    return None


def _color_at_end(line: str) -> bool:
    return re.search(r"\d+\s*,\s*\d+\s*,\s*\d+[)\]]?$", line) is not None


def _parse_rows(rows: Sequence[tuple[int, list[str]]], ids: Ids | None) -> _Parsed:
    width = max(len(row) for _, row in rows)
    ragged = [str(number) for number, row in rows if len(row) != width]
    if ragged:
        raise _RefusedError(
            f"it is a table, but lines {listing(ragged)} have fewer columns than the others; give every line {width} columns"
        )
    header = [_role(field) for field in rows[0][1]]
    named = any(role in ("name", "name or value") for role in header)
    if named and not any(_number(field) is not None for field in rows[0][1]):
        body = rows[1:]
        columns = _header_columns(rows[0][1], body, ids)
    else:
        body = rows
        columns = _bare_columns(body)
    parsed = _Parsed("a table of classes", [])
    ade = named and {"idx", "ratio", "stuff"} <= {_key(field) for field in rows[0][1]}
    if ade:
        parsed.kind = "ADE20K's list of objects"
        parsed.entries.append(_Entry("void", 0, None, True))
        parsed.notes.append("value 0 is void, as in ADE20K")
    trained = (
        columns.get("value") is not None
        and named
        and _key(rows[0][1][columns["value"]]) == "trainid"
    )
    for number, row in body:
        where, value, color = f"line {number}", None, None
        if "value" in columns:
            # A class without a train ID is not trained on.
            value = (
                IGNORE_INDEX
                if trained and not row[columns["value"]]
                else _number(row[columns["value"]])
            )
            if value is None:
                parsed.problems.append(f"{where}: {row[columns['value']]!r} is no number")
        if "color" in columns:
            color = _color(row[columns["color"]])
            if color is None:
                parsed.problems.append(
                    f"{where}: {row[columns['color']]!r} is no color; write R G B of 0 to 255, or #RRGGBB"
                )
        elif "r" in columns:
            parts = [_number(row[columns[channel]]) for channel in "rgb"]
            if None in parts:
                wrong = " ".join(row[columns[channel]] for channel in "rgb")
                parsed.problems.append(
                    f"{where}: {wrong!r} is no color; write three numbers of 0 to 255"
                )
            else:
                color = (parts[0] or 0, parts[1] or 0, parts[2] or 0)
        void = "void" in columns and row[columns["void"]].lower() in ("1", "true", "yes")
        if value is not None and "train" in columns:
            void |= not row[columns["train"]] or _number(row[columns["train"]]) in (
                IGNORE_INDEX,
                -1,
            )
            if value < 0 or (trained and value == IGNORE_INDEX):
                value, void = None, True
        parsed.entries.append(_Entry(_unquoted(row[columns["name"]]), value, color, void, where))
    if "train" in columns:
        _free_void(parsed, "trainId" if trained else "id")
    return parsed


def _key(field: str) -> str:
    return re.sub(r"[\s_\-.]", "", _unquoted(field).lower())


def _role(field: str) -> str | None:
    key = _key(field)
    channel = next(
        (letter for letter, known in zip("rgb", _CHANNELS, strict=True) if key in known), None
    )
    if channel:
        return channel
    if key in _COLOR:
        return "color"
    if key in _IGNORED:
        return "void"
    if key in ("label", "class"):
        return "name or value"
    if key == "trainid":
        return "train"
    return "name" if key in _NAME else "value" if key in _VALUE else None


def _header_columns(
    header: Sequence[str], body: Sequence[tuple[int, list[str]]], ids: Ids | None
) -> dict[str, int]:
    """Role -> column, by the header; `label` and `class` may hold names or numbers."""
    columns: dict[str, int] = {}
    keys = [_key(field) for field in header]
    valued = any(_role(field) in ("value", "train") for field in header)
    for at in [at for at, key in enumerate(keys) if key in ("", "unnamed:0") and not valued]:
        # pandas writes a column of row numbers without a name.
        numbers = [_number(row[at]) for _, row in body]
        if None not in numbers and numbers != list(range(len(body))):
            raise _RefusedError(
                f"column {at + 1} has no name and holds numbers that do not count from 0; call it `id` if masks store them, else delete "
                "it"
            )
    for at, field in enumerate(header):
        if keys[at] in ("category", "categories", "title", "readable") and "name" in keys:
            continue
        role = _role(field)
        if role == "name or value":
            role = (
                "value" if body and all(_number(row[at]) is not None for _, row in body) else "name"
            )
        if role is None:
            continue
        if role in columns:
            raise _RefusedError(
                f"columns '{header[columns[role]]}' and '{field}' both give a {role}; keep one"
            )
        columns[role] = at
    if "train" in columns:
        both = {"trainId": columns["train"]} | (
            {"id": columns["value"]} if "value" in columns else {}
        )
        key = _id_key(
            [{name: _number(row[at]) for name, at in both.items()} for _, row in body], ids
        )
        columns["value"] = both.get(key or "", columns["train"])
    if "name" not in columns:
        raise _RefusedError(
            f"it is a table with the columns {listing(header)}, none of which is the class's name; call one `name`"
        )
    channels = {"r", "g", "b"} & set(columns)
    if channels and len(channels) < 3:
        raise _RefusedError(
            f"it is a table with the color columns {listing(sorted(channels))} only; there must be r, g and b"
        )
    if channels and "color" in columns:
        raise _RefusedError(
            "it is a table with a color column and with columns r, g and b; keep one of them"
        )
    return columns


def _bare_columns(body: Sequence[tuple[int, list[str]]]) -> dict[str, int]:
    """Role -> column of a table without a header, by what the columns hold."""
    width = len(body[0][1])
    numeric = [at for at in range(width) if all(_number(row[at]) is not None for _, row in body)]
    hexes = [
        at for at in range(width) if at not in numeric and all(_color(row[at]) for _, row in body)
    ]
    names = [at for at in range(width) if at not in numeric and at not in hexes]
    if (
        len(names) != 1
        or len(numeric) not in (0, 1, 3, 4)
        or len(hexes) > 1
        or (hexes and len(numeric) > 1)
    ):
        raise _RefusedError(
            f"it is a table of {width} columns whose meaning is not clear; begin it with a header such as `name,r,g,b` or `id,name`, or "
            f"{_ADVICE}"
        )
    columns = {"name": names[0]}
    if hexes:
        columns["color"] = hexes[0]
    if len(numeric) in (1, 4):
        at = numeric[0]
        if len(numeric) == 4:
            # Three channels stay together; the number stands on the other side of the name, or
            # before them.
            sides = [column < names[0] for column in numeric]
            apart = [
                column
                for column, side in zip(numeric, sides, strict=True)
                if sides.count(side) == 1
            ]
            at = apart[0] if apart else numeric[0]
            fours = [[_number(row[column]) or 0 for column in numeric] for _, row in body]
            if not apart and _is_alpha(fours) == _numbers_before_colors(fours):
                raise _RefusedError(
                    "it is a table of a name and four numbers whose meaning is not clear; begin it with `name,id,r,g,b` or "
                    "`name,r,g,b,alpha`"
                )
            if not apart and _is_alpha(fours):
                at, numeric = -1, numeric[:3]
        if at >= 0:
            columns["value"] = at
    rest = [at for at in numeric if at != columns.get("value")]
    if rest:
        columns |= dict(zip("rgb", rest, strict=True))
    return columns


def _numbers_before_colors(rows: Sequence[Sequence[int]]) -> bool:
    """Whether of four numbers a row the first, and not the last, counts from 0 or 1, so that the other three are a color."""
    count = len(rows)
    counting = list(range(count)), list(range(1, count + 1))
    return [row[0] for row in rows] in counting and [row[-1] for row in rows] not in counting


def _is_alpha(rows: Sequence[Sequence[int]]) -> bool:
    """Whether of four numbers a row the last can be the alpha of a color: 255, or 255 and 0."""
    return {row[-1] for row in rows} in ({255}, {0, 255}) and all(
        part <= 255 for row in rows for part in row
    )


# Lines


@dataclasses.dataclass(frozen=True)
class _Line:
    number: int
    text: str
    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    hex: Color | None

    @property
    def color_only(self) -> int:
        """How many numbers it has, if they can be those of one color and stand on one side of the name; else 0."""
        count = max(len(self.before), len(self.after))
        return (
            count
            if self.name and count in (3, 4) and not min(len(self.before), len(self.after))
            else 0
        )


def _parse_lines(lines: Sequence[tuple[int, str]]) -> _Parsed:
    parsed = _Parsed("classes.txt", [])
    split = []
    if (
        len(lines) > 1
        and len(words := lines[0][1].split()) > 1
        and all(_role(word) or word.lower() in ("a", "alpha") for word in words)
        and re.search(r"\d$|^\d", lines[1][1])
    ):
        lines = lines[1:]  # a header such as `name r g b`
    for number, text in lines:
        plain = re.sub(r"\s(#|//)\s.*$", "", text).strip()
        odd = re.search(r"\s#(?![0-9a-fA-F]{6}\b)(?!\d+$)", plain)
        if odd:
            parsed.problems.append(
                f"line {number}: `#` within the line; put the comment on a line of its own"
            )
        if re.search(r"(?:^|\s)[01]?\.\d+(?:[\s,]+[01]?\.?\d+){2}$", plain):
            parsed.problems.append(
                f"line {number}: the color is given as fractions; write three whole numbers of 0 to 255"
            )
        if re.fullmatch(r"\d+([\s,;]+\d+){3,}", plain):
            parsed.problems.append(
                f"line {number}: {plain[:40]!r} holds numbers only; a class has a name"
            )
        plain = _without_negative(number, plain, parsed.problems)
        split.append(_split(number, plain))
    split = _without_alpha(split, parsed)
    shape = _shape(split)
    if len(split) > 1 and all(len(line.after) == 2 and not line.before for line in split):
        parsed.problems.append(
            "every line ends in two numbers, which are neither a value nor a color"
        )
    if shape.startswith("number"):
        parsed.kind = "a numbered list"
        parsed.notes.append(
            "its numbers are the values that masks store (put a name that holds a number in quotes)"
        )
    if len(split) > 1 and all(re.fullmatch(r"\d{1,3}", line.text) for line in split):
        parsed.kind = "a list of values"
        parsed.notes.append(
            "its lines are the values that masks store, and the names of the classes"
        )
        parsed.entries = [
            _Entry(line.text, int(line.text), where=f"line {line.number}") for line in split
        ]
        return parsed
    for line in split:
        entry = _entry(line, shape)
        quoted = _unquoted(line.text) != line.text
        if not quoted and re.search(
            r"[:;=|\[\]<>]\s*\d|\d\s*[:;=|]|[{}]|^[-*•]\s|^[\[\"]|:$", entry.name
        ):
            parsed.problems.append(
                f"line {line.number}: {line.text[:60]!r} is not understood (put a name that looks so in quotes)"
            )
        parsed.entries.append(entry)
    if shape == "half":
        numbered = [
            str(line.number) for line in split if len(line.before) == 1 or len(line.after) == 1
        ]
        parsed.problems.append(
            f"only lines {listing(numbered)} are numbered; number every line, or none"
        )
    return parsed


def _without_negative(number: int, text: str, problems: list[str]) -> str:
    """The line, with the number -1 of a void, which masks store as 255, as 255; another negative number is a problem."""
    if _unquoted(text) != text:
        return text
    found = re.search(r"(?:^|[\s:=,;(\[])(-\d+)(?=$|[\s:=,;.)\]])", text)
    if not found:
        return text
    name = (text[: found.start(1)] + text[found.end(1) :]).strip(" \t:=,;.").lower()
    if found.group(1) == "-1" and (name in ("void", _IGNORE) or name.strip("_") in _DOUBTFUL):
        return text[: found.start(1)] + str(IGNORE_INDEX) + text[found.end(1) :]
    problems.append(
        f"line {number}: {found.group(1)} in {text[:60]!r} is negative; masks store 0 to 65535 (put a name that looks so in quotes)"
    )
    return text


def _without_alpha(lines: Sequence[_Line], parsed: _Parsed) -> list[_Line]:
    """The lines, without the alpha of colors that are given as four numbers; four numbers of another meaning are problems."""
    for side in ("before", "after"):
        colored = [line for line in lines if len(getattr(line, side)) >= 3 and not line.hex]
        fours = [line for line in colored if len(getattr(line, side)) == 4]
        if not fours:
            continue
        numbers = [getattr(line, side) for line in fours]
        names = Counter(line.name for line in colored)
        # `lane 1` and `lane 2` end in numbers, and so does `Boeing 747`.
        named = side == "after" and all(
            names[line.name] > 1 or line.after[0] > 255 for line in fours
        )
        whole = len(fours) == len(colored)
        first = [row[0] for row in numbers]
        counted = (
            whole
            and len(fours) == len(lines)
            and (
                _numbers_before_colors(numbers)
                or (side == "before" and not _is_alpha(numbers) and first == sorted(set(first)))
            )
        )
        if named or (counted and not _is_alpha(numbers)):
            continue
        if whole and _is_alpha(numbers) and not counted:
            parsed.notes.append("the fourth number of a color is taken as its alpha")
            return [
                dataclasses.replace(line, **{side: getattr(line, side)[:3]})
                if line in fours
                else line
                for line in lines
            ]
        parsed.problems.append(
            f"lines {listing(str(line.number) for line in fours)} have four numbers whose meaning is not clear; write `name R G B`, or "
            '`"name that ends in a number" R G B`'
        )
    return list(lines)


def _split(number: int, text: str) -> _Line:
    """Numbers before and after the name; none where all of the line is in quotes."""
    if _unquoted(text) != text.strip():
        return _Line(number, text, _unquoted(text), (), (), None)
    rest, color = text.rstrip(",; \t"), None
    hexed = re.search(rf"[\s,;:=]+({_HEX})$", rest) or re.match(rf"({_HEX})[\s,;:=]+", rest)
    if hexed:
        color = _color(hexed.group(1))
        rest = (rest[: hexed.start()] if hexed.start() else rest[hexed.end() :]).strip(" \t,;:=")
    before = re.match(
        r"[(\[]?((?:\d+[\s,;:=.)\]]+)*\d+)[)\]]?(?:\s*[:=,;.)]\s*|\s+)(?=\D|\d+[^\W\d])", rest
    )
    first = tuple(map(int, re.findall(r"\d+", before.group(1)))) if before else ()
    name = rest[before.end() :] if before else rest
    after = re.search(r"(?:\s*[:=,;]\s*|\s+)[(\[]?(\d+(?:[\s,;]+\d+)*)[)\]]?$", name)
    last = tuple(map(int, re.findall(r"\d+", after.group(1)))) if after else ()
    name = name[: after.start()] if after else name
    return _Line(number, text, _unquoted(name.strip()), first, last, color)


def _shape(lines: Sequence[_Line]) -> str:
    """What the numbers of all lines are."""
    if not lines:
        return "names"
    before, after = (
        Counter(len(line.before) for line in lines),
        Counter(len(line.after) for line in lines),
    )
    named = [line.name for line in lines if line.name.lower() != "void"]
    numbers = [(line.before or line.after or (0,))[0] for line in lines]
    # `lane 1` and `lane 2` are names, and so is `Boeing 747`.
    distinct = len(set(named)) == len(named) and max(numbers) <= IGNORE_INDEX
    count = len(lines)
    if before[3] == count or before[4] == count:
        return "color first"
    if before[1] == count and count > 1 and distinct:
        return "numbers first"
    if after[1] == count and not before[1] and count > 1 and distinct:
        return "numbers last"
    if (
        after[4] == count
        and count > 1
        and distinct
        and _numbers_before_colors([line.after for line in lines])
    ):
        return "number and color last"
    separated = [
        re.match(r"\d+\s*[:=,;)]", line.text) or re.search(r"[:=,;]\s*\d+$", line.text)
        for line in lines
    ]
    single = [
        line.before[0] for line in lines if len(line.before) == 1 and len(line.after) in (0, 3)
    ]
    consecutive = len(single) > 1 and single in (
        list(range(len(single))),
        list(range(1, len(single) + 1)),
    )
    if (any(separated) and not all(separated) and not after[3]) or (
        consecutive and len(single) < count
    ):
        return "half"
    return "names"


def _entry(line: _Line, shape: str) -> _Entry:
    where = f"line {line.number}"
    if shape == "color first":
        value = line.before[0] if len(line.before) == 4 else None
        return _Entry(
            _joined("", line.name, line.after), value, _three(line.before[-3:]), where=where
        )
    color = line.hex or (_three(line.after[-3:]) if len(line.after) >= 3 else None)
    surplus = line.after if line.hex else line.after[:-3] if len(line.after) >= 3 else line.after
    if shape == "numbers first":
        return _Entry(_joined("", line.name, surplus), line.before[0], color, where=where)
    if shape == "numbers last":
        return _Entry(line.name, line.after[0], color, where=where)
    if shape == "number and color last":
        return _Entry(line.name, line.after[0], _three(line.after[1:]), where=where)
    if color is None:
        return _Entry(_unquoted(" ".join(line.text.rstrip(",; \t").split())), where=where)
    return _Entry(
        _joined(" ".join(map(str, line.before)), line.name, surplus), None, color, where=where
    )


def _joined(before: str, name: str, after: Iterable[int]) -> str:
    return " ".join([*before.split(), *name.split(), *map(str, after)])


def _three(numbers: Sequence[int]) -> Color:
    return numbers[0], numbers[1], numbers[2]


def _number(text: str) -> int | None:
    text = _unquoted(text)
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else None


def _color(text: Any) -> Color | None:
    """`#RRGGBB`, `0xRRGGBB`, `R G B`, `[R, G, B]` or a list of three numbers; None where it is none."""
    if isinstance(text, list | tuple):
        parts = [part for part in text if isinstance(part, int) and not isinstance(part, bool)]
        return _three(parts) if len(parts) == len(text) and len(parts) in (3, 4) else None
    if not isinstance(text, str):
        return None
    text = _unquoted(text)
    if re.fullmatch(_HEX, text) or re.fullmatch(r"#[0-9a-fA-F]{8}", text):
        code = text.removeprefix("#").removeprefix("0x").removeprefix("0X")
        return int(code[:2], 16), int(code[2:4], 16), int(code[4:6], 16)
    match = re.fullmatch(r"(?:rgb)?[(\[]?\s*(\d+)[\s,;/-]+(\d+)[\s,;/-]+(\d+)\s*[)\]]?", text)
    return (int(match.group(1)), int(match.group(2)), int(match.group(3))) if match else None


def _unquoted(text: str) -> str:
    text = text.strip()
    return (
        text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    )


# JSON

_NOT_NAMED = (
    "it is JSON that is not known as a list of classes of a tool; if it lists classes, rename it to classes.json, else write a "
    f"classes.txt: {_ADVICE}"
)


def _parse_json(text: str, ids: Ids | None, is_named: bool) -> _Parsed:
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _RefusedError(
            f"it begins as JSON but is none ({error}); mend it, or {_ADVICE}"
        ) from error
    _refuse_annotations(value)
    if isinstance(value, dict):
        return _parse_object(value, ids, is_named)
    if not is_named and all(isinstance(item, str) for item in value):
        raise _RefusedError(_NOT_NAMED)
    return _parse_list(value, "a JSON list", ids)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    if repeated:
        raise ValueError(f"{listing(repeated)} stands twice in one object")
    return dict(pairs)


def _refuse_annotations(value: Any) -> None:
    keys = set(value) if isinstance(value, dict) else set()
    first = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}
    known: tuple[tuple[bool, str], ...] = (
        (
            {"images", "annotations"} <= keys or {"categories", "images"} <= keys,
            "COCO annotations, which hold polygons",
        ),
        (
            any(key.startswith("_via_") for key in keys),
            "a project of the VGG Image Annotator, which holds polygons",
        ),
        (
            any(
                isinstance(item, dict) and "regions" in item and "filename" in item
                for item in value.values()
            )
            if isinstance(value, dict)
            else False,
            "annotations of the VGG Image Annotator, which hold polygons",
        ),
        (
            "shapes" in keys and "imagePath" in keys,
            "labelme's annotation of one image, which holds polygons",
        ),
        (
            "annotations" in first or "completions" in first or "annotation_id" in first,
            "Label Studio's export",
        ),
        (
            "objects" in keys and ("size" in keys or "imgHeight" in keys),
            "the annotation of one image, which holds polygons",
        ),
        ("cells" in keys and "nbformat" in keys, "a notebook"),
        ("image_id" in first and "segmentation" in first, "COCO results, which hold polygons"),
    )
    for matches, what in known:
        if matches:
            raise _RefusedError(
                f"it is {what}, not a list of classes; export masks as PNG images, then {_ADVICE}"
            )


def _parse_object(value: dict[str, Any], ids: Ids | None, is_named: bool) -> _Parsed:
    if isinstance(value.get("label_map"), dict):
        parsed = _parse_pairs(value["label_map"], "Datumaro's dataset_meta.json")
        colors = value.get("segmentation_colors")
        if isinstance(colors, list) and len(colors) == len(parsed.entries):
            parsed.entries = [
                dataclasses.replace(entry, color=_color(c))
                for entry, c in zip(parsed.entries, colors, strict=True)
            ]
        return parsed
    for key, kind in (
        ("labels", "Mapillary's config.json"),
        ("classes", "Supervisely's meta.json"),
        ("categories", "a JSON list of categories"),
        ("names", "a JSON list of names"),
        ("class_names", "a JSON list of names"),
    ):
        items = value.get(key)
        if isinstance(items, list) and (
            is_named or (items and all(isinstance(item, dict) for item in items))
        ):
            return _parse_list(items, kind, ids)
    for key in ("id2label", "label2id", *(("labels", "classes", "names") if is_named else ())):
        if isinstance(value.get(key), dict):
            return _parse_pairs(value[key], "a JSON table of classes")
    if is_named:
        return _parse_pairs(value, "a JSON table of classes")
    raise _RefusedError(_NOT_NAMED)


def _parse_pairs(pairs: dict[str, Any], kind: str) -> _Parsed:
    """`{"0": "road"}`, `{"road": 0}`, `{"road": [128, 64, 128]}` or `{"road": "#804080"}`."""
    entries = []
    for key, value in pairs.items():
        where = f"key {key!r}"
        if _number(key) is not None and isinstance(value, str):
            entries.append(_Entry(value.strip(), _number(key), where=where))
        elif isinstance(value, int) and not isinstance(value, bool):
            entries.append(_Entry(key.strip(), value, where=where))
        elif _color(value) is not None:
            entries.append(_Entry(key.strip(), None, _color(value), where=where))
        else:
            raise _RefusedError(
                f"it is JSON that is not known as a list of classes (key {key!r}); write a list of objects with `name`, `id` and `color`, "
                f"or a classes.txt: {_ADVICE}"
            )
    return _Parsed(kind, entries)


def _parse_list(items: Sequence[Any], kind: str, ids: Ids | None) -> _Parsed:
    if all(isinstance(item, str) for item in items):
        return _Parsed(
            kind, [_Entry(item.strip(), where=f"item {at}") for at, item in enumerate(items)]
        )
    if not all(isinstance(item, dict) for item in items):
        raise _RefusedError(
            f"it is a JSON list whose items are neither names nor objects with a `name`; {_ADVICE}"
        )
    items = [_with_known_keys(item) for item in items]
    key = _id_key(items, ids)
    trains = any("trainId" in item for item in items)
    parsed = _Parsed(kind, [])
    for at, item in enumerate(items):
        where = f"item {at}"
        # Mapillary calls "construction--flat--road" by the readable "Road".
        name = next(
            (
                item[k]
                for k in ("readable", "name", "title", "label", "class")
                if isinstance(item.get(k), str)
            ),
            None,
        )
        if name is None:
            parsed.problems.append(f"{where}: it has no `name`")
            continue
        void = item.get("ignoreInEval") is True or item.get("evaluate") is False
        value = item.get(key, IGNORE_INDEX if key == "trainId" else None) if key else None
        if key and (not isinstance(value, int) or isinstance(value, bool)):
            parsed.problems.append(f"{where}: {key} {value!r} is no whole number")
            continue
        if (
            key
            and value is not None
            and (value < 0 or (key == "trainId" and value == IGNORE_INDEX))
        ):
            value, void = None, True
        color = _color(item["color"]) if item.get("color") is not None else None
        if item.get("color") is not None and color is None:
            parsed.problems.append(
                f'{where}: color {item["color"]!r} is none; write [R, G, B] or "#RRGGBB"'
            )
        void = void or (
            key == "id" and item.get("trainId", IGNORE_INDEX if trains else 0) in (IGNORE_INDEX, -1)
        )
        parsed.entries.append(_Entry(name.strip(), value, color, void, where))
    if key:
        _free_void(parsed, key)
    return parsed


def _with_known_keys(item: dict[str, Any]) -> dict[str, Any]:
    """An object with the keys of other spellings under the known ones, and numbers that stand in quotes as numbers."""
    known = {
        "trainid": "trainId",
        "hex": "color",
        "hexcolor": "color",
        "color": "color",
        "rgb": "color",
        "id": "id",
    }
    given = {key: value for key, value in item.items() if value is not None}
    item = {known[_key(key)]: value for key, value in given.items() if _key(key) in known} | given
    for key in ("id", "trainId", *_OTHER_IDS):
        if isinstance(item.get(key), str) and _number(item[key]) is not None:
            item[key] = _number(item[key])
    return item


def _free_void(parsed: _Parsed, key: str) -> None:
    """Leave out void that no mask stores, and its color where a class has it, as Cityscapes' license plate has that of cars."""
    taken = {entry.color for entry in parsed.entries if not _is_void(entry)}
    freed = [
        dataclasses.replace(entry, color=None)
        if _is_void(entry) and entry.color in taken
        else entry
        for entry in parsed.entries
    ]
    parsed.entries = [
        entry for entry in freed if entry.value is not None or entry.color is not None
    ]
    parsed.notes.append(f"`{key}` is the value that masks store")


_OTHER_IDS = ("value", "index", "class_id", "label_id")


def _id_key(items: Sequence[dict[str, Any]], ids: Ids | None) -> str | None:
    """The key whose number the masks store."""
    has_id = all(isinstance(item.get("id"), int) for item in items)
    # A class without one is not trained on.
    has_train = any(isinstance(item.get("trainId"), int) for item in items)
    if has_id and has_train and any(item["id"] != item.get("trainId") for item in items):
        if ids is None:
            raise _RefusedError(
                "each class has an `id` and a `trainId` that differ, and the masks' names do not end in `labelIds` or `labelTrainIds`, "
                "which would say which of the two they store; delete the other one from the file"
            )
        return ids
    if has_train:
        return "trainId"
    if any("id" in item for item in items):
        # Supervisely's ids are numbers of its database, and its masks are in colors.
        return "id" if not all("title" in item for item in items) else None
    return next((key for key in _OTHER_IDS if all(key in item for item in items)), None)
