"""What a check of a dataset finds."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
"""An error stops a training or makes it useless; a warning is odd; a note is a fact."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One kind of finding in one split, or in all.

    Attributes:
        severity: how bad it is.
        kind: "split", "damaged", "unreadable", "size", "labels", "classes", "duplicates" or
            "reading".
        split: the split, or "" for all.
        message: one line, without the split.
        count: number of images, masks or classes that it concerns; None if that is not counted.
        details: a line for each of them, at most a thousand.
    """

    severity: Severity
    kind: str
    split: str
    message: str
    count: int | None = None
    details: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return dataclasses.asdict(self)
