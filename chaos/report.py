"""The table of results, and how it is written to `docs/reliability.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from chaos.kills import Kind
from chaos.story import Outcome, Story
from fuzz.report import aligned, write_between

BEGIN = "<!-- chaos table: written by python -m chaos --table -->"
END = "<!-- end of the chaos table -->"

_PLACES = ("start", "steps", "save", "save and evaluation", "evaluation", "end")


def table(stories: Sequence[Story]) -> str:
    """Return a Markdown table with a row for each kind of kill and process, and a summary."""
    head = ("killed by", "processes", "kills", *_PLACES, "slowest end", "steps again", "faults")
    rows = []
    for processes in sorted({story.processes for story in stories}):
        outcomes = [o for story in stories if story.processes == processes for o in story.outcomes]
        for kind in Kind:
            for process in range(processes):
                own = [
                    outcome
                    for outcome in outcomes
                    if outcome.kill.kind is kind and outcome.kill.process % processes == process
                ]
                name = f"{kind}, process {process}" if processes > 1 else f"{kind}"
                if own:
                    rows.append((name, processes, *_figures(own)))
    every = [outcome for story in stories for outcome in story.outcomes]
    if every:
        rows.append(("all", "", *_figures(every)))
    equal = sum(story.done and not story.faults for story in stories)
    return "\n".join(
        [
            aligned(head, rows),
            "",
            f"{len(stories)} trainings; resumed until done: {sum(s.done for s in stories)}; equal "
            f"to the undisturbed training in every bit: {equal}.",
        ]
    )


def write(path: Path, stories: Sequence[Story], command: str) -> None:
    """Write the table between the markers of a document, or at its end if there are none."""
    write_between(path, BEGIN, END, f"`{command}`\n\n{table(stories)}")


def faults(stories: Sequence[Story]) -> list[str]:
    """Return one text for each fault."""
    found = []
    for story in stories:
        for number, outcome in enumerate(story.outcomes, 1):
            name = f"{story.run.name}, kill {number} ({outcome.kill.kind}, {outcome.where})"
            found += [f"{name}: {fault}" for fault in outcome.faults]
        found += [f"{story.run.name}: {fault}" for fault in story.faults]
    return found


def _figures(outcomes: Sequence[Outcome]) -> tuple[object, ...]:
    places = Counter(outcome.where for outcome in outcomes)
    return (
        len(outcomes),
        *(places[place] for place in _PLACES),
        f"{max(outcome.seconds for outcome in outcomes):.1f} s",
        max(outcome.repeated for outcome in outcomes),
        sum(bool(outcome.faults) for outcome in outcomes),
    )
