"""A short chaos test, and tests that it finds faults. `make chaos` runs the complete one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chaos import judge, report
from chaos.__main__ import run
from chaos.kills import Kind, Moment, plan
from chaos.story import Outcome, Story
from chaos.training import STEPS, State, leftovers


@pytest.mark.slow
def test_killed_trainings_are_resumed_and_equal(tmp_path: Path) -> None:
    stories = run(tmp_path / "chaos", kills=[4], seed=3)
    assert report.faults(stories) == []
    assert sum(len(story.outcomes) for story in stories) == 4
    # A difference is found.
    folder = next(story.run for story in stories)
    (folder / "metrics.jsonl").write_text(
        (folder / "metrics.jsonl").read_text().replace('"lr": ', '"lr": 1')
    )
    assert judge.differences(folder, tmp_path / "chaos" / "undisturbed") == [
        "other values in 'train' records"
    ]


def test_plans_are_reproducible_and_have_every_kind() -> None:
    kills = plan(30, seed=5)
    assert kills == plan(30, seed=5)
    assert kills != plan(30, seed=6)
    assert {kill.kind for kill in kills} == set(Kind)
    assert {kill.moment for kill in kills} == set(Moment)
    assert all(kill.workers for kill in kills if kill.kind is Kind.WORKER)


def write_records(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    return folder


def train(*numbers: int) -> list[dict[str, Any]]:
    return [{"step": n, "event": "train", "loss": 1 / n, "step_seconds": 1.0} for n in numbers]


def val(*numbers: int) -> list[dict[str, Any]]:
    return [{"step": n, "event": "val", "miou": n / 100} for n in numbers]


COMPLETE = [*train(*range(1, STEPS + 1)), *val(*range(12, STEPS + 1, 12))]


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([{**record, "step_seconds": 2.0} for record in COMPLETE], []),
        ([*COMPLETE, *train(7)], ["'train' records: [7] twice, [] missing"]),
        (
            [*train(*range(1, STEPS)), *val(12, 24, 36, 48)],
            [f"'train' records: [] twice, [{STEPS}] missing"],
        ),
        (
            [*train(*range(1, STEPS + 1)), *val(12, 36, 48)],
            ["'val' records: [] twice, [24] missing"],
        ),
        ([*COMPLETE[:-1], {**COMPLETE[-1], "miou": 0.1}], ["other values in 'val' records"]),
    ],
)
def test_finds_steps_that_are_missing_or_recorded_twice(
    records: list[dict[str, Any]], found: list[str], tmp_path: Path
) -> None:
    expected = write_records(tmp_path / "undisturbed", COMPLETE)
    assert judge._record_differences(write_records(tmp_path / "run", records), expected) == found


def test_says_where_a_process_was(tmp_path: Path) -> None:
    compiled = [{"step": 0, "event": "compile"}]
    saved = [{"step": 12, "event": "checkpoint"}]
    run = tmp_path / "run"
    assert State(run).where(0) == "start"
    assert State(write_records(run, compiled)).where(0) == "steps"
    assert State(run).where(1) == "start"
    assert State(write_records(run, compiled + train(*range(1, 13)) + saved)).where(0) == (
        "evaluation"
    )
    unfinished = run / "checkpoints" / "12.orbax-checkpoint-tmp-3"
    unfinished.mkdir(parents=True)
    assert State(run).where(0) == "save and evaluation"
    assert leftovers(run) == ["checkpoints/12.orbax-checkpoint-tmp-3"]
    unfinished.rename(run / "checkpoints" / "12")
    write_records(run, compiled + train(*range(1, 13)) + saved + val(12))
    state = State(run)
    assert (state.where(0), state.step, state.checkpoints) == ("steps", 12, [12])
    write_records(run, [*compiled, {"step": 48, "event": "end"}])
    assert State(run).where(0) == "end"
    assert leftovers(run) == []


def test_table_counts_kills_and_faults(tmp_path: Path) -> None:
    kill = plan(1, seed=0)[0]
    good = Outcome(kill, "save", seconds=1.5, repeated=2)
    bad = Outcome(kill, "steps", seconds=0.5, faults=["ended with 1"])
    stories = [
        Story(tmp_path / "run-0", 1, [good, good], done=True),
        Story(tmp_path / "run-1", 1, [bad], ["other values of step"], done=True),
    ]
    text = report.table(stories)
    row = next(line for line in text.splitlines() if line.startswith(f"| {kill.kind} "))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        kill.kind,
        *("1", "3", "0", "1", "2", "0", "0", "0", "1.5 s", "2", "1"),
    ]
    assert "2 trainings; resumed until done: 2; equal" in text
    assert text.endswith("in every bit: 1.")
    assert report.faults(stories) == [
        f"run-1, kill 1 ({kill.kind}, steps): ended with 1",
        "run-1: other values of step",
    ]
    path = tmp_path / "reliability.md"
    report.write(path, stories, "python -m chaos")
    report.write(path, stories, "python -m chaos --seed 1")
    assert path.read_text().count("| killed by") == 1
    assert "`python -m chaos --seed 1`" in path.read_text()
