"""Class lists that are tables: CSV with commas, semicolons or tabs, with or without a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

from fcn_jax.data.labels.class_list_entries import (
    ADVICE,
    UNUSED,
    Entry,
    Ids,
    Parsed,
    RefusedError,
    color,
    ends_in_alpha,
    key_of,
    number,
    numbers_come_first,
    role_of,
    stored_id,
    unquoted,
)
from fcn_jax.data.labels.class_list_lines import parse_lines, split_line
from fcn_jax.errors import listing
from fcn_jax.plugins.api import IGNORE_INDEX

Rows = Sequence[tuple[int, list[str]]]
"""Line numbers and fields."""


def parse_table(lines: Sequence[tuple[int, str]], ids: Ids | None) -> Parsed | None:
    """Parse the rows of a CSV; None if the text is not a table.

    Args:
        lines: line numbers and lines, without blank lines and comments.
        ids: which number the masks store if the table has both an `id` and a `trainId`.

    Raises:
        RefusedError: it is a table whose columns are not clear.
    """
    for delimiter in (",", ";", "\t"):
        counts = [line.count(delimiter) for _, line in lines]
        if not counts or not all(counts):
            continue
        rows = []
        for at, line in lines:
            reader = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
            rows.append((at, [field.strip() for field in next(reader, [])]))
        while rows and all(len(row) > 1 and not row[-1] for _, row in rows):
            rows = [(at, row[:-1]) for at, row in rows]
        if all(len(row) == 1 for _, row in rows):
            return parse_lines([(at, row[0]) for at, row in rows])
        if delimiter == "\t" and not any(role_of(field) for field in rows[0][1]):
            return None  # tabs instead of spaces
        if delimiter == "," and all(
            count in (2, 3) and split_line(at, line).color_parts == count + 1
            for (at, line), count in zip(lines, counts, strict=True)
        ):
            return None  # `name R,G,B` or `name R,G,B,A`
        return _parse_rows(rows, ids)
    bare = [
        (at, line)
        for at, line in lines
        if unquoted(line) == line and not re.search(r"\d+\s*,\s*\d+\s*,\s*\d+[)\]]?$", line)
    ]
    commas = [str(at) for at, line in bare if re.search(r"[,;]", line.rstrip(",;"))]
    if commas and len(commas) < len(lines) <= 2 * len(commas):
        raise RefusedError(
            f"lines {listing(commas)} hold commas or semicolons and others do not; write either a "
            "table with the same columns on every line, or " + ADVICE.removeprefix("write ")
        )
    return None


def _parse_rows(rows: Rows, ids: Ids | None) -> Parsed:
    width = max(len(row) for _, row in rows)
    ragged = [str(at) for at, row in rows if len(row) != width]
    if ragged:
        raise RefusedError(
            f"it is a table, but lines {listing(ragged)} have fewer columns than the others; give "
            f"every line {width} columns"
        )
    parsed = Parsed("a table of classes")
    header, body, trained = rows[0][1], rows, False
    named = any(role_of(field) in ("name", "name or value") for field in header)
    if named and not any(number(field) is not None for field in header):
        body = rows[1:]
        columns = _header_columns(header, body, ids)
        trained = "value" in columns and key_of(header[columns["value"]]) == "trainid"
        if {"idx", "ratio", "stuff"} <= {key_of(field) for field in header}:
            parsed.kind = "ADE20K's list of objects"
            parsed.entries.append(Entry("void", 0, None, True))
            parsed.notes.append("value 0 is void, as in ADE20K")
    else:
        columns = _bare_columns(body)
    for at, row in body:
        _add_row(parsed, at, {role: row[column] for role, column in columns.items()}, trained)
    if "train" in columns:
        parsed.drop_unstored_void("trainId" if trained else "id")
    return parsed


def _add_row(parsed: Parsed, at: int, row: dict[str, str], trained: bool) -> None:
    """Add the entry of a row, whose fields are given by role, or its problems."""
    where, value, shown = f"line {at}", None, None
    if "value" in row:
        # A class without a train ID is not trained on.
        value = IGNORE_INDEX if trained and not row["value"] else number(row["value"])
        if value is None:
            parsed.problems.append(f"{where}: {row['value']!r} is not a number")
    if "color" in row or "r" in row:
        given = row["color"] if "color" in row else " ".join(unquoted(row[c]) for c in "rgb")
        shown = color(given)
        if shown is None:
            parsed.problems.append(
                f"{where}: {given!r} is not a color; write R G B of 0 to 255, or #RRGGBB"
            )
    void = row.get("void", "").lower() in ("1", "true", "yes")
    if value is not None and "train" in row:
        void |= not row["train"] or number(row["train"]) in UNUSED
        if value < 0 or (trained and value == IGNORE_INDEX):
            value, void = None, True
    parsed.entries.append(Entry(unquoted(row["name"]), value, shown, void, where))


def _header_columns(header: Sequence[str], body: Rows, ids: Ids | None) -> dict[str, int]:
    """Role -> column, by the header. Columns `label` and `class` may hold names or numbers."""
    columns: dict[str, int] = {}
    keys = [key_of(field) for field in header]
    valued = any(role_of(field) in ("value", "train") for field in header)
    for at in [at for at, key in enumerate(keys) if key in ("", "unnamed:0") and not valued]:
        # pandas writes a column of row numbers without a name.
        numbers = [number(row[at]) for _, row in body]
        if None not in numbers and numbers != list(range(len(body))):
            raise RefusedError(
                f"column {at + 1} has no name and holds numbers that do not count from 0; call it "
                "`id` if masks store them, otherwise delete it"
            )
    for at, field in enumerate(header):
        if keys[at] in ("category", "categories", "title", "readable") and "name" in keys:
            continue
        role = role_of(field)
        if role == "name or value":
            numeric = body and all(number(row[at]) is not None for _, row in body)
            role = "value" if numeric else "name"
        if role is None:
            continue
        if role in columns:
            raise RefusedError(
                f"columns '{header[columns[role]]}' and '{field}' both give a {role}; keep one"
            )
        columns[role] = at
    if "train" in columns:
        both = {"trainId": columns["train"]}
        if "value" in columns:
            both["id"] = columns["value"]
        items = [{name: number(row[at]) for name, at in both.items()} for _, row in body]
        columns["value"] = both.get(stored_id(items, ids) or "", columns["train"])
    channels = sorted({"r", "g", "b"} & set(columns))
    problem = None
    if "name" not in columns:
        problem = f"the columns {listing(header)}, and no class name among them; call one `name`"
    elif channels and len(channels) < 3:
        problem = f"only the color columns {listing(channels)}; there must be r, g and b"
    elif channels and "color" in columns:
        problem = "a color column and columns r, g and b; keep only one of the two"
    if problem:
        raise RefusedError(f"it is a table with {problem}")
    return columns


def _bare_columns(body: Rows) -> dict[str, int]:
    """Role -> column of a table without a header, by what the columns hold."""
    width = len(body[0][1])
    numeric = [at for at in range(width) if all(number(row[at]) is not None for _, row in body)]
    others = [at for at in range(width) if at not in numeric]
    hexes = [at for at in others if all(color(row[at]) for _, row in body)]
    names = [at for at in others if at not in hexes]
    one_color = len(hexes) <= 1 and not (hexes and len(numeric) > 1)
    if len(names) != 1 or len(numeric) not in (0, 1, 3, 4) or not one_color:
        raise RefusedError(
            f"it is a table of {width} columns whose meaning is not clear; begin it with a header "
            f"such as `name,r,g,b` or `id,name`, or {ADVICE}"
        )
    columns = {"name": names[0]}
    if hexes:
        columns["color"] = hexes[0]
    if len(numeric) == 1:
        columns["value"] = numeric[0]
    elif len(numeric) == 4:
        # Three channels stay together; the number stands on the other side of the name, or
        # before the channels.
        sides = [column < names[0] for column in numeric]
        apart = [at for at, side in zip(numeric, sides, strict=True) if sides.count(side) == 1]
        fours = [[number(row[column]) or 0 for column in numeric] for _, row in body]
        is_alpha = not apart and ends_in_alpha(fours)
        if not apart and is_alpha == numbers_come_first(fours):
            raise RefusedError(
                "it is a table of a name and four numbers whose meaning is not clear; begin it "
                "with `name,id,r,g,b` or `name,r,g,b,alpha`"
            )
        if is_alpha:
            numeric = numeric[:3]
        else:
            columns["value"] = (apart or numeric)[0]
    rest = [at for at in numeric if at != columns.get("value")]
    return columns | dict(zip("rgb", rest, strict=False))
