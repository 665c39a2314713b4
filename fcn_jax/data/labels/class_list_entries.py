"""Entries of a class list, and the numbers, colors and column names that all formats share."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal

from fcn_jax.data.labels.label_map import Color
from fcn_jax.plugins.api import IGNORE_INDEX

Ids = Literal["id", "trainId"]
"""Which of Cityscapes' two numbers the masks store."""

ADVICE = "write one class per line: `name`, or `name R G B`"
IGNORE = "__ignore__"
"""labelme's and CVAT's name for pixels that do not count."""

UNCERTAIN = ("ignore", "ignored", "unlabeled", "unlabelled", "unknown", "undefined")
"""Names that are void if their number is 255 or -1, and otherwise classes, with a note."""

UNUSED = (IGNORE_INDEX, -1)
"""Numbers and train IDs of classes that are not trained on."""

HEX = r"(?:#|0[xX])[0-9a-fA-F]{6}"
OTHER_IDS = ("value", "index", "class_id", "label_id")
"""Keys of a class's number, in addition to `id` and `trainId`."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line, row or object of a class list.

    Attributes:
        name: the name of the class.
        value: the stored mask value; None if the list has no numbers.
        color: the RGB color; None if the list has no colors.
        void: whether the list itself says that these pixels do not count.
        where: the place in the file, for messages.
    """

    name: str
    value: int | None = None
    color: Color | None = None
    void: bool = False
    where: str = ""

    @property
    def is_void(self) -> bool:
        """Whether the entry is void, by the list's own flag or by its name."""
        return self.void or self.name.lower() in ("void", IGNORE)

    @property
    def is_uncertain(self) -> bool:
        """Whether the name is one that tools give to pixels that do not count."""
        return self.name.lower().strip("_") in UNCERTAIN


@dataclasses.dataclass
class Parsed:
    """The entries of a file, the name of its format, its problems, and the assumptions."""

    kind: str
    entries: list[Entry] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def drop_unstored_void(self, key: str) -> None:
        """Remove void entries that no mask stores, and void colors that a class has too.

        Cityscapes' license plate, for example, has the color of cars.

        Args:
            key: the key whose number the masks store, for the note.
        """
        taken = {entry.color for entry in self.entries if not entry.is_void}
        entries, self.entries = self.entries, []
        for entry in entries:
            if entry.is_void and entry.color in taken:
                entry = dataclasses.replace(entry, color=None)
            if entry.value is not None or entry.color is not None:
                self.entries.append(entry)
        self.notes.append(f"`{key}` is the value that masks store")


class RefusedError(Exception):
    """Why a file is not a class list, and what to do."""


def unquoted(text: str) -> str:
    """The text without surrounding spaces and one pair of quotes."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1].strip()
    return text


def number(text: str) -> int | None:
    """The whole number that a text is, of at most nine digits; otherwise None."""
    text = unquoted(text)
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else None


def rgb(numbers: Sequence[int]) -> Color:
    """The first three numbers as a color."""
    return numbers[0], numbers[1], numbers[2]


def color(value: Any) -> Color | None:
    """The color that a text or a list of numbers is; otherwise None.

    Args:
        value: `#RRGGBB`, `#RRGGBBAA`, `0xRRGGBB`, `R G B`, `[R, G, B]`, or a list of three or four
            numbers.
    """
    if isinstance(value, list | tuple):
        parts = [part for part in value if isinstance(part, int) and not isinstance(part, bool)]
        return rgb(parts) if len(parts) == len(value) and len(parts) in (3, 4) else None
    if not isinstance(value, str):
        return None
    text = unquoted(value)
    if re.fullmatch(rf"{HEX}|#[0-9a-fA-F]{{8}}", text):
        return rgb(bytes.fromhex(re.sub(r"#|0[xX]", "", text, count=1)))
    match = re.fullmatch(r"(?:rgb)?[(\[]?\s*(\d+)[\s,;/-]+(\d+)[\s,;/-]+(\d+)\s*[)\]]?", text)
    return rgb([int(part) for part in match.groups()]) if match else None


def key_of(field: str) -> str:
    """A column's or a key's name in lower case, without separators and quotes."""
    return re.sub(r"[\s_\-.]", "", unquoted(field).lower())


_ROLES = {
    word: role
    for role, words in {
        "r": "r red",
        "g": "g green",
        "b": "b blue",
        "color": "color colour rgb hex colorrgb rgbcolor hexcolor hexcode colorhex colorcode "
        "rgbvalues",
        "void": "ignoreineval ignore",
        "name or value": "label class",
        "train": "trainid",
        "name": "name classname labelname category classes readable title labels classlabel",
        "value": "id index idx value pixelvalue labelid classid number code pixel classindex",
    }.items()
    for word in words.split()
}


def role_of(field: str) -> str | None:
    """The role of a table's column by its header; None for a column that is not used."""
    return _ROLES.get(key_of(field))


def numbers_come_first(rows: Sequence[Sequence[int]]) -> bool:
    """Whether, in rows of four numbers, the first is the class's number and the others a color.

    True if the first numbers count from 0 or 1 and the last ones do not.
    """
    counting = list(range(len(rows))), list(range(1, len(rows) + 1))
    return [row[0] for row in rows] in counting and [row[-1] for row in rows] not in counting


def ends_in_alpha(rows: Sequence[Sequence[int]]) -> bool:
    """Whether, in rows of four numbers, the last can be a color's alpha: 255, or 255 and 0."""
    return {row[-1] for row in rows} in ({255}, {0, 255}) and all(
        part <= 255 for row in rows for part in row
    )


def stored_id(items: Sequence[dict[str, Any]], ids: Ids | None) -> str | None:
    """The key whose number the masks store; None if the classes have no numbers.

    Args:
        items: the classes, each with its numbers by key.
        ids: which one to take if each class has both an `id` and a `trainId`.

    Raises:
        RefusedError: the classes have both numbers, and `ids` is None.
    """
    has_id = all(isinstance(item.get("id"), int) for item in items)
    # A class without a train ID is not trained on.
    has_train = any(isinstance(item.get("trainId"), int) for item in items)
    if has_id and has_train and any(item["id"] != item.get("trainId") for item in items):
        if ids is None:
            raise RefusedError(
                "each class has an `id` and a `trainId` that differ, and the names of the masks do "
                "not end in `labelIds` or `labelTrainIds`, which would say which of the two they "
                "store; delete the other one from the file"
            )
        return ids
    if has_train:
        return "trainId"
    if any("id" in item for item in items):
        # Supervisely's ids are numbers of its database, and its masks are in colors.
        return "id" if not all("title" in item for item in items) else None
    return next((key for key in OTHER_IDS if all(key in item for item in items)), None)
