"""The table of results, and how it is written to `docs/reliability.md`."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from fuzz.cases import FAMILIES
from fuzz.oracle import Verdict

BEGIN = "<!-- fuzz table: written by python -m fuzz --table -->"
END = "<!-- end of the fuzz table -->"


def table(verdicts: Sequence[Verdict]) -> str:
    """Return a Markdown table with a row for each family, and the reasons of undetectable cases."""
    head = (
        "family",
        "mutations",
        "cases",
        "read right",
        "refused in one line",
        "undetectable",
        "faults",
    )
    rows = []
    for family in FAMILIES:
        own = [verdict for verdict in verdicts if verdict.case.family == family]
        if own:
            rows.append((family, *_counts(own)))
    rows.append(("all", *_counts(verdicts)))
    lines = [aligned(head, rows)]
    reasons = collections.Counter(
        (verdict.detail, verdict.case.family)
        for verdict in verdicts
        if verdict.outcome == "undetectable"
    )
    if reasons:
        lines += ["", "Undetectable:", ""]
        lines += [
            f"- {family}, {count}: {reason}."
            for (reason, family), count in sorted(reasons.items(), key=lambda item: -item[1])
        ]
    return "\n".join(lines)


def aligned(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table whose columns, except the first, are right-aligned."""
    widths = [max(len(str(row[k])) for row in [head, *rows]) for k in range(len(head))]
    rule = (
        "|"
        + "|".join("-" * (width + 1) + (":" if k else "-") for k, width in enumerate(widths))
        + "|"
    )
    return "\n".join([_row(head, widths), rule, *(_row(row, widths) for row in rows)])


def write(path: Path, verdicts: Sequence[Verdict], command: str) -> None:
    """Write the table between the markers of a document, or at its end if there are none.

    Raises:
        ValueError: the document has only one of the two markers.
    """
    write_between(path, BEGIN, END, f"`{command}`\n\n{table(verdicts)}")


def write_between(path: Path, begin: str, end: str, contents: str) -> None:
    """Replace what a document has between two markers; without markers, append it with them.

    Raises:
        ValueError: the document has only one of the two markers.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else "# Reliability\n"
    block = f"{begin}\n{contents}\n{end}"
    if begin in text or end in text:
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{path}: one of the markers {begin} and {end} is missing")
        text = before + block + after
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    path.write_text(text, encoding="utf-8")


def _counts(verdicts: Sequence[Verdict]) -> tuple[int, ...]:
    outcomes = collections.Counter(verdict.outcome for verdict in verdicts)
    kinds = len({(verdict.case.family, verdict.case.mutation) for verdict in verdicts})
    faults = sum(verdict.fault for verdict in verdicts)
    return (
        kinds,
        len(verdicts),
        outcomes["right"],
        outcomes["refused"],
        outcomes["undetectable"],
        faults,
    )


def _row(values: Sequence[object], widths: Sequence[int]) -> str:
    cells = (
        f"{value:{'>' if k else '<'}{width}}"
        for k, (value, width) in enumerate(zip(map(str, values), widths, strict=True))
    )
    return "| " + " | ".join(cells) + " |"
