"""Class lists in text that is not JSON: the known formats, and those that are refused by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fcn_jax.data.labels.class_list_entries import (
    ADVICE,
    HEX,
    IGNORE,
    Entry,
    Ids,
    Parsed,
    RefusedError,
    key_of,
    number,
    unquoted,
)
from fcn_jax.data.labels.class_list_lines import parse_lines
from fcn_jax.data.labels.class_list_tables import parse_table
from fcn_jax.errors import listing

LISTS_IMAGES = f"it lists images, not classes; {ADVICE}"
IMAGE = r"(?i:\.(?:jpe?g|png|bmp|tiff?|webp|gif))"
"""A regular expression for the ending of an image file."""

_YOLO = "YOLO's labels are polygons or boxes: export masks as images"
_OTHER_FORMATS = (
    (any, r"item\s*\{", f"it is a TensorFlow label map (pbtxt), not a list of classes; {ADVICE}"),
    (any, r"names\s*:", f"it is YAML, as YOLO's data.yaml; {_YOLO}, then {ADVICE}"),
    (all, r"-\s", f"it is a YAML list; {ADVICE}, without the dash"),
)
"""How many lines begin with a pattern, the pattern, and the message."""

_HEADING = re.compile(
    r"(class|label|category)?names?|(class)?labels?|class|classes?|category|categories?"
)
"""The header of a table of one column."""


def parse_text(text: str, ids: Ids | None) -> Parsed:
    """Parse a class list that is not JSON.

    Args:
        text: the contents of the file.
        ids: which number the masks store if each class has an `id` and a `trainId`.

    Raises:
        RefusedError: the text is not a class list.
    """
    if text.lstrip().startswith("<"):
        raise RefusedError(f"it is XML or HTML, not a list of classes; {ADVICE}")
    lines = [(at, line.strip()) for at, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and re.fullmatch(r"sep=.?", lines[0][1]):
        lines = lines[1:]  # Excel's
    images = [line for _, line in lines if re.search(rf"{IMAGE}(?=$|[\s,;\"'])", line)]
    if 2 * len(images) > len(lines):
        raise RefusedError(LISTS_IMAGES)
    for quantifier, pattern, message in _OTHER_FORMATS:
        if lines and quantifier(re.match(pattern, line) for _, line in lines):
            raise RefusedError(message)
    long = [str(at) for at, line in lines if len(line) > 500]
    if long:
        raise RefusedError(
            f"lines {listing(long)} are longer than 500 characters, which does not occur in a list "
            f"of classes; {ADVICE}"
        )
    cvat = _parse_cvat(lines)
    if cvat is not None:
        return cvat
    lines, notes = _without_heading(_without_comments(lines))
    if any(line.strip("\"'") in (IGNORE, "_background_") for _, line in lines):
        parsed = _parse_labelme(lines)
    else:
        parsed = parse_table(lines, ids) or parse_lines(lines)
    parsed.notes = [*notes, *parsed.notes]
    return parsed


def _without_comments(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    hexes = [str(at) for at, line in lines if re.match(rf"{HEX}[\s,;]+\S", line)]
    if 1 < len(hexes) < len(lines):
        raise RefusedError(
            f"lines {listing(hexes)} begin with a color, the others do not; write `name #RRGGBB` "
            "(a line that begins with # is a comment)"
        )
    if not hexes or len(hexes) < len(lines):
        lines = [(at, line) for at, line in lines if not line.startswith(("#", "//"))]
    # The first field of a table may be empty.
    is_table = bool(lines) and all(";" in line for _, line in lines)
    marks = ("%", "--", "!", "/*") if is_table else ("%", "--", "!", "/*", ";")
    odd = [
        f"{at} ({line[:40]!r})"
        for at, line in lines
        if line.startswith(marks) and any(character.isalnum() for character in line)
    ]
    if odd:
        raise RefusedError(
            f"lines {listing(odd)} look like comments; begin comments with #, or put a class's "
            "name in quotes"
        )
    return lines


def _without_heading(lines: list[tuple[int, str]]) -> tuple[list[tuple[int, str]], list[str]]:
    """The lines without the header of a table of one column, and a note on the header."""
    if len(lines) < 2:
        return lines, []
    at, line = lines[0]
    first = key_of(line.rstrip(",;"))
    numbers = first in ("id", "ids", "value", "values", "index") and all(
        number(other) is not None for _, other in lines[1:]
    )
    if not _HEADING.fullmatch(first) and not numbers:
        return lines, []
    if unquoted(line) == line:
        return lines[1:], [
            f"line {at}, {line!r}, is taken as a header, not as a class (put it in quotes if it is "
            "a class)"
        ]
    if all(unquoted(other) != other for _, other in lines):
        raise RefusedError(
            f"line {at}, {line}, can be a header or a class, since all lines are in quotes; delete "
            "it if it is a header, otherwise take the quotes off another line"
        )
    return lines, []


def _parse_cvat(lines: Sequence[tuple[int, str]]) -> Parsed | None:
    """Parse CVAT's and Datumaro's `labelmap.txt`; None if it is another format."""
    header = any(re.match(r"#\s*label\s*:\s*color_rgb", line) for _, line in lines)
    rows = [(at, line) for at, line in lines if not line.startswith("#")]
    pattern = re.compile(r"(.*?):\s*(?:(\d+)\s*,\s*(\d+)\s*,\s*(\d+))?\s*:([^:]*):([^:]*)")
    found = [pattern.fullmatch(line) for _, line in rows]
    if not rows or not (header or any(found)):
        return None
    parsed = Parsed("CVAT label map")
    for (at, line), match in zip(rows, found, strict=True):
        if match is None:
            parsed.problems.append(
                f"line {at}: {line[:60]!r} is not `name:R,G,B:parts:actions` as in the rest of "
                "CVAT's label map"
            )
            continue
        name, red, green, blue = match.group(1).strip(), *match.group(2, 3, 4)
        shown = None if red is None else (int(red), int(green), int(blue))
        parsed.entries.append(Entry(unquoted(name), None, shown, name == IGNORE, f"line {at}"))
    return parsed


def _parse_labelme(lines: Sequence[tuple[int, str]]) -> Parsed:
    """Parse labelme's `labels.txt`: the first line is label -1, which its masks store as 255."""
    parsed = Parsed("labelme's labels")
    names = [(f"line {at}", line.strip("\"'")) for at, line in lines]
    has_ignore = names[0][1] == IGNORE
    for position, (where, name) in enumerate(names):
        if name == IGNORE and position > 0:
            parsed.problems.append(
                f"{where}: labelme has {IGNORE} first; move it there, or call it void"
            )
        value = 255 if name == IGNORE else position - has_ignore
        parsed.entries.append(Entry(name, value, None, name == IGNORE, where))
    return parsed
