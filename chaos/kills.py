"""Kills, and the moments at which they come."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np


class Moment(enum.StrEnum):
    """The moment that a kill waits for."""

    START = "start"
    """Any time from the start of the process to its first step: imports, data, compilation."""
    STEP = "step"
    """A step some steps later."""
    SAVE = "save"
    """A save that began."""
    EVALUATION = "evaluation"
    """An evaluation that began."""
    END = "end"
    """The last steps, the last save or the last evaluation."""
    AFTER = "after the end"
    """The record of the end is written; the report and the end of the process follow."""


class Kind(enum.StrEnum):
    """The way in which a training is killed."""

    KILL = "SIGKILL"
    """Of the process; its input workers are not signaled."""
    KILL_ALL = "SIGKILL of the group"
    TERM = "SIGTERM"
    TERM_ALL = "SIGTERM of the group"
    """Also of its input workers, as schedulers do."""
    TERM_KILL = "SIGTERM, then SIGKILL"
    """With less than a second between them."""
    WORKER = "SIGKILL of an input worker"
    """The training goes on."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        kind: how.
        moment: when.
        count: number of steps, saves or evaluations to wait for; for the start, unused.
        share: 0 to 1: when within the start; otherwise the delay after the moment.
        grace: seconds between SIGTERM and SIGKILL.
        workers: number of input workers of the process that is killed.
        process: index of the killed process, modulo the number of processes. Successive kills of a
            plan have another one, so that process 0, which the others depend on, is killed, too.
    """

    kind: Kind
    moment: Moment
    count: int
    share: float
    grace: float
    workers: int
    process: int


_PATTERN: Sequence[tuple[Kind, Moment]] = (
    (Kind.KILL, Moment.SAVE),
    (Kind.TERM, Moment.STEP),
    (Kind.WORKER, Moment.STEP),
    (Kind.KILL, Moment.STEP),
    (Kind.TERM_ALL, Moment.SAVE),
    (Kind.KILL, Moment.EVALUATION),
    (Kind.KILL_ALL, Moment.STEP),
    (Kind.TERM, Moment.EVALUATION),
    (Kind.KILL, Moment.START),
    (Kind.TERM_KILL, Moment.STEP),
    (Kind.KILL, Moment.SAVE),
    (Kind.TERM, Moment.START),
    (Kind.KILL_ALL, Moment.END),
    (Kind.TERM, Moment.SAVE),
    (Kind.TERM_KILL, Moment.EVALUATION),
    (Kind.TERM, Moment.END),
    (Kind.KILL, Moment.AFTER),
    (Kind.TERM, Moment.AFTER),
    (Kind.KILL, Moment.END),
)
"""Shares of the kills. Every kind is in the first of them."""


def plan(count: int, seed: int) -> list[Kill]:
    """Return the kills of a seed, in random order."""
    rng = np.random.default_rng(seed)
    kills = []
    for number in range(count):
        kind, moment = _PATTERN[number % len(_PATTERN)]
        waited = {Moment.STEP: rng.integers(1, 13), Moment.SAVE: rng.integers(1, 4)}
        kills.append(
            Kill(
                kind,
                moment,
                int(waited.get(moment, 1)),
                float(rng.random()),
                float(rng.random()),
                1 if kind is Kind.WORKER or rng.random() < 0.15 else 0,
                number,
            )
        )
    return [kills[place] for place in rng.permutation(count)]
