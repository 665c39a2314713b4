"""The result of a check as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fcn_jax.explore.check import Report
from fcn_jax.explore.problems import Problem, Severity

_SHOWN = 5
"""Details of a problem that are shown."""

_TITLES: dict[Severity, str] = {"error": "Errors", "warning": "Warnings", "note": "Notes"}


def text(report: Report) -> str:
    """The report: splits, classes, problems, suggestions, and the result in the last line."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    table = report.to_dict()
    where = f" in {table['root']}" if table["root"] else ""
    images = sum(split["images"] for split in table["splits"].values())
    yield (
        f"Dataset {table['dataset']}{where}: {_plural(len(report.classes), 'class', 'classes')}, "
        f"{_plural(images, 'image')} in {_plural(len(table['splits']), 'split')}"
    )
    yield ""
    yield from _table(
        ["split", "images", "readable", "width", "height", "ignored"], list(_splits(table))
    )
    yield "(width and height: smallest, median, largest; ignored: share of the pixels)"
    yield ""
    heads = [f"{name} {what}" for name in table["splits"] for what in ("pixels", "images")]
    yield from _table(["class", *heads], list(_classes(table)))
    for severity, title in _TITLES.items():
        problems = report.of(severity)
        if problems:
            yield from ("", f"{title}:")
        for problem in problems:
            yield from _problem(problem)
    if report.suggestions:
        yield from ("", "Suggestions:")
    for suggestion in report.suggestions:
        yield f"  {suggestion.option}"
        yield f"    {suggestion.reason}"
    yield ""
    errors, warnings = len(report.of("error")), len(report.of("warning"))
    found = [_plural(count, word) for count, word in ((errors, "error"), (warnings, "warning"))]
    yield f"Result: {' and '.join(found)}"


def _problem(problem: Problem) -> Iterator[str]:
    yield f"  {f'{problem.split}: ' if problem.split else ''}{problem.message}"
    for detail in problem.details[:_SHOWN]:
        yield f"    {detail}"
    hidden = (problem.count or 0) - _SHOWN
    if problem.details and hidden > 0:
        yield f"    and {hidden} more"


def _splits(table: dict[str, Any]) -> Iterator[list[str]]:
    for name, split in table["splits"].items():
        spreads = [_spread(split[side]) for side in ("width", "height")]
        ignored = "-" if split["ignored"] is None else f"{split['ignored']:.1%}"
        yield [name, str(split["images"]), str(split["readable"]), *spreads, ignored]


def _classes(table: dict[str, Any]) -> Iterator[list[str]]:
    for number, entry in enumerate(table["classes"]):
        cells = [entry["name"]]
        for split in table["splits"].values():
            pixels = split["class_pixels"]
            cells.append(_share(pixels[number], split["labeled_pixels"]))
            cells.append(str(split["class_images"][number]))
        yield cells


def _share(pixels: int, total: int) -> str:
    if not total:
        return "-"
    return "<0.01%" if 0 < pixels < total / 10_000 else f"{pixels / total:.2%}"


def _spread(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "-"
    return " ".join(f"{spread[key]:g}" for key in ("min", "median", "max"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns under their heads; the first is aligned to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()


def _plural(count: int, word: str, words: str = "") -> str:
    return f"{count} {word if count == 1 else words or f'{word}s'}"
