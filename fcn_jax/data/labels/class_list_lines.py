"""Class lists of one line per class: a name, with numbers or a color before or after it."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

from fcn_jax.data.labels.class_list_entries import (
    HEX,
    Entry,
    Parsed,
    color,
    ends_in_alpha,
    numbers_come_first,
    rgb,
    role_of,
    unquoted,
)
from fcn_jax.data.labels.label_map import Color
from fcn_jax.errors import listing
from fcn_jax.plugins.api import IGNORE_INDEX

_NUMBERED = "its numbers are the values that masks store (put a name that holds a number in quotes)"
_VALUES = "its lines are the values that masks store, and the names of the classes"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line, split into its name and the numbers before and after it."""

    number: int
    text: str
    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    hex: Color | None

    @property
    def color_parts(self) -> int:
        """3 or 4 if all its numbers can be those of one color; otherwise 0."""
        count = len(self.before or self.after)
        one_side = not (self.before and self.after)
        return count if self.name and count in (3, 4) and one_side else 0


def split_line(number: int, text: str) -> Line:
    """Split a line. A line that is completely in quotes has no numbers."""
    if unquoted(text) != text.strip():
        return Line(number, text, unquoted(text), (), (), None)
    rest, shown = text.rstrip(",; \t"), None
    hexed = re.search(rf"[\s,;:=]+({HEX})$", rest) or re.match(rf"({HEX})[\s,;:=]+", rest)
    if hexed:
        shown = color(hexed.group(1))
        rest = (rest[: hexed.start()] if hexed.start() else rest[hexed.end() :]).strip(" \t,;:=")
    before = re.match(
        r"[(\[]?((?:\d+[\s,;:=.)\]]+)*\d+)[)\]]?(?:\s*[:=,;.)]\s*|\s+)(?=\D|\d+[^\W\d])", rest
    )
    name = rest[before.end() :] if before else rest
    after = re.search(r"(?:\s*[:=,;]\s*|\s+)[(\[]?(\d+(?:[\s,;]+\d+)*)[)\]]?$", name)
    name = name[: after.start()] if after else name
    first, last = (
        tuple(map(int, re.findall(r"\d+", found.group(1)))) if found else ()
        for found in (before, after)
    )
    return Line(number, text, unquoted(name.strip()), first, last, shown)


def parse_lines(lines: Sequence[tuple[int, str]]) -> Parsed:
    """Parse line numbers and lines, without blank lines and comments."""
    parsed = Parsed("classes.txt")
    if len(lines) > 1 and re.search(r"\d$|^\d", lines[1][1]):
        words = lines[0][1].split()
        if len(words) > 1 and all(role_of(w) or w.lower() in ("a", "alpha") for w in words):
            lines = lines[1:]  # a header such as `name r g b`
    split = [split_line(at, _checked(at, text, parsed.problems)) for at, text in lines]
    split = _without_alpha(split, parsed)
    several = len(split) > 1
    shape = _shape(split)
    if several and all(len(line.after) == 2 and not line.before for line in split):
        parsed.problems.append(
            "every line ends in two numbers, which are neither a value nor a color"
        )
    if shape.startswith("number"):
        parsed.kind = "a numbered list"
        parsed.notes.append(_NUMBERED)
    if several and all(re.fullmatch(r"\d{1,3}", line.text) for line in split):
        parsed.kind = "a list of values"
        parsed.notes.append(_VALUES)
        parsed.entries = [
            Entry(line.text, int(line.text), where=f"line {line.number}") for line in split
        ]
        return parsed
    for line in split:
        entry = _entry(line, shape)
        if unquoted(line.text) == line.text and re.search(
            r"[:;=|\[\]<>]\s*\d|\d\s*[:;=|]|[{}]|^[-*•]\s|^[\[\"]|:$", entry.name
        ):
            parsed.problems.append(
                f"line {line.number}: {line.text[:60]!r} is not understood (put a name that looks "
                "like this in quotes)"
            )
        parsed.entries.append(entry)
    if shape == "half":
        numbered = [str(line.number) for line in split if 1 in (len(line.before), len(line.after))]
        parsed.problems.append(
            f"only lines {listing(numbered)} are numbered; number every line, or none"
        )
    return parsed


def _checked(number: int, text: str, problems: list[str]) -> str:
    """A line without its comment, with 255 as the number of void; adds the line's problems."""
    plain = re.sub(r"\s(#|//)\s.*$", "", text).strip()
    for pattern, problem in (
        (
            r"\s#(?![0-9a-fA-F]{6}\b)(?!\d+$)",
            "`#` within the line; put the comment on a line of its own",
        ),
        (
            r"(?:^|\s)[01]?\.\d+(?:[\s,]+[01]?\.?\d+){2}$",
            "the color is given as fractions; write three whole numbers of 0 to 255",
        ),
        (
            r"^\d+([\s,;]+\d+){3,}$",
            f"{plain[:40]!r} holds numbers only; a class has a name",
        ),
    ):
        if re.search(pattern, plain):
            problems.append(f"line {number}: {problem}")
    if unquoted(plain) != plain:
        return plain
    found = re.search(r"(?:^|[\s:=,;(\[])(-\d+)(?=$|[\s:=,;.)\]])", plain)
    if not found:
        return plain
    before, after = plain[: found.start(1)], plain[found.end(1) :]
    entry = Entry((before + after).strip(" \t:=,;."))
    # Masks store the label -1 of void as 255.
    if found.group(1) == "-1" and (entry.is_void or entry.is_uncertain):
        return f"{before}{IGNORE_INDEX}{after}"
    problems.append(
        f"line {number}: {found.group(1)} in {plain[:60]!r} is negative; masks store 0 to 65535 "
        "(put a name that looks like this in quotes)"
    )
    return plain


def _without_alpha(lines: Sequence[Line], parsed: Parsed) -> list[Line]:
    """The lines without the alpha of colors of four numbers.

    Four numbers with another meaning are added to the problems.
    """
    for side in ("before", "after"):
        numbers = {line: getattr(line, side) for line in lines if not line.hex}
        colored = {line: row for line, row in numbers.items() if len(row) >= 3}
        fours = {line: row for line, row in colored.items() if len(row) == 4}
        if not fours:
            continue
        names = Counter(line.name for line in colored)
        # `lane 1`, `lane 2` and `Boeing 747` are names that end in numbers.
        named = all(names[line.name] > 1 or row[0] > 255 for line, row in fours.items())
        rows, first = list(fours.values()), [row[0] for row in fours.values()]
        alpha = ends_in_alpha(rows)
        counting = side == "before" and not alpha and first == sorted(set(first))
        counted = len(fours) == len(lines) and (numbers_come_first(rows) or counting)
        if (side == "after" and named) or (counted and not alpha):
            continue
        if len(fours) == len(colored) and alpha and not counted:
            parsed.notes.append("the fourth number of a color is taken as its alpha")
            cut = {key: dataclasses.replace(key, **{side: row[:3]}) for key, row in fours.items()}
            return [cut.get(line, line) for line in lines]
        parsed.problems.append(
            f"lines {listing(str(line.number) for line in fours)} have four numbers whose meaning "
            'is not clear; write `name R G B`, or `"name that ends in a number" R G B`'
        )
    return list(lines)


def _shape(lines: Sequence[Line]) -> str:
    """The meaning of the numbers of all lines.

    "color first", "numbers first", "numbers last", "number and color last"; "half" if only some
    lines are numbered; otherwise "names", where a color may stand last.
    """
    if not lines:
        return "names"
    before = Counter(len(line.before) for line in lines)
    after = Counter(len(line.after) for line in lines)
    named = [line.name for line in lines if line.name.lower() != "void"]
    numbers = [(line.before or line.after or (0,))[0] for line in lines]
    count = len(lines)
    # `lane 1`, `lane 2` and `Boeing 747` are names.
    distinct = count > 1 and len(set(named)) == len(named) and max(numbers) <= IGNORE_INDEX
    if count in (before[3], before[4]):
        return "color first"
    if before[1] == count and distinct:
        return "numbers first"
    if after[1] == count and not before[1] and distinct:
        return "numbers last"
    if after[4] == count and distinct and numbers_come_first([line.after for line in lines]):
        return "number and color last"
    separated = [
        re.match(r"\d+\s*[:=,;)]", line.text) or re.search(r"[:=,;]\s*\d+$", line.text)
        for line in lines
    ]
    single = [
        line.before[0] for line in lines if len(line.before) == 1 and len(line.after) in (0, 3)
    ]
    counting = [list(range(start, start + len(single))) for start in (0, 1)]
    consecutive = len(single) > 1 and single in counting
    if (any(separated) and not all(separated) and not after[3]) or (
        consecutive and len(single) < count
    ):
        return "half"
    return "names"


def _entry(line: Line, shape: str) -> Entry:
    where = f"line {line.number}"
    if shape == "color first":
        value = line.before[0] if len(line.before) == 4 else None
        return Entry(_joined((), line.name, line.after), value, rgb(line.before[-3:]), where=where)
    has_color = not line.hex and len(line.after) >= 3
    shown = rgb(line.after[-3:]) if has_color else line.hex
    surplus = line.after[:-3] if has_color else line.after
    if shape == "numbers first":
        return Entry(_joined((), line.name, surplus), line.before[0], shown, where=where)
    if shape == "numbers last":
        return Entry(line.name, line.after[0], shown, where=where)
    if shape == "number and color last":
        return Entry(line.name, line.after[0], rgb(line.after[1:]), where=where)
    if shown is None:
        return Entry(unquoted(" ".join(line.text.rstrip(",; \t").split())), where=where)
    return Entry(_joined(line.before, line.name, surplus), None, shown, where=where)


def _joined(before: Sequence[int], name: str, after: Sequence[int]) -> str:
    return " ".join([*map(str, before), *name.split(), *map(str, after)])
