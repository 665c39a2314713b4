"""One training from its start to its end, with all its kills."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from chaos.judge import differences
from chaos.kills import Kill, Kind, Moment
from chaos.training import STEPS, Dataset, State, Training

LIMIT = 90.0
"""Seconds in which a process must end after a signal."""
LONGEST = 240.0
"""Seconds in which a training without further kills must end."""
_ORPHANS_END = 5.0
"""Seconds in which input workers must end after their parent."""
_POLL = 0.008
_TERM, _KILL = -signal.SIGTERM, -signal.SIGKILL
_STOPPED = 128 + signal.SIGTERM
_FAILED = 1, 2
"""Exit statuses of a process that ends because another one was killed."""


@dataclasses.dataclass
class Outcome:
    """What became of one kill.

    Attributes:
        kill: the kill.
        where: what the process did at that moment; see `State.where`.
        seconds: time until all processes of the training had ended; 0 for an input worker.
        repeated: number of recorded steps that the next process takes again.
        faults: everything that was not as it should be.
    """

    kill: Kill
    where: str
    seconds: float = 0.0
    repeated: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Story:
    """A training, which was killed and resumed until it was done.

    Attributes:
        run: its run directory.
        processes: number of its processes.
        outcomes: of its kills.
        faults: of its end: everything in which it differs from the undisturbed training.
        done: whether it was resumed until it was done.
    """

    run: Path
    processes: int
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    done: bool = False


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """The training with which others are compared; `starts` is the seconds to its first step."""

    run: Path
    starts: float


def undisturbed(data: Dataset, run: Path, processes: int = 1) -> Undisturbed:
    """Train without a kill.

    Raises:
        RuntimeError: the training failed.
    """
    training = Training(data, run, workers=0, processes=processes)
    try:
        while training.is_running() and not State(run).count("compile"):
            time.sleep(0.02)
        starts = time.monotonic() - training.began
        if not training.wait(LONGEST) or any(training.statuses()):
            raise RuntimeError(f"the undisturbed training failed:\n{training.output()}")
    finally:
        training.end()
    return Undisturbed(run, starts)


def tell(
    data: Dataset,
    run: Path,
    kills: deque[Kill],
    reference: Undisturbed,
    on_kill: Callable[[], None] = lambda: None,
    processes: int = 1,
    until: float = math.inf,
) -> Story:
    """Train until the training is done, and apply kills as long as there are any.

    Args:
        data: what it trains on.
        run: run directory.
        kills: those that are to come; they are removed from it.
        reference: the training with which the result is compared.
        on_kill: called after each kill.
        processes: number of processes.
        until: time of `time.monotonic` after which no kill begins.
    """
    story = Story(run, processes)
    while not story.done and not story.faults:
        if time.monotonic() > until:
            kills.clear()
        left = len(kills)
        _live(story, data, kills, reference)
        for _ in range(left - len(kills)):
            on_kill()
    if story.done:
        story.faults += differences(run, reference.run)
    return story


def _live(story: Story, data: Dataset, kills: deque[Kill], reference: Undisturbed) -> None:
    """Start or resume the training, and go on until it is killed or done."""
    before = State(story.run)
    starts, newest = before.count("compile"), max(before.checkpoints, default=0)
    workers = kills[0].workers if kills else 0
    training = Training(data, story.run, workers=workers, processes=story.processes)
    try:
        killed = False
        while kills and not killed and _reached(kills[0], training, starts, reference.starts):
            kill = kills.popleft()
            if kill.kind is Kind.WORKER:
                story.outcomes.append(_kill_worker(kill, training, starts))
            else:
                story.outcomes.append(_kill(kill, training, starts))
                killed = True
        if not killed:
            _finish(story, training)
        after = State(story.run)
        if after.count("compile") > starts and after.resumed_at != newest:
            story.faults.append(f"resumed at step {after.resumed_at}, not {newest}")
        if "Traceback" in training.output():
            story.faults.append(f"a traceback: {training.output()[-2000:]}")
        if story.outcomes and story.outcomes[-1].faults and killed:
            story.outcomes[-1].faults.append(training.output()[-2000:])
    finally:
        training.end()


def _finish(story: Story, training: Training) -> None:
    if not training.wait(LONGEST):
        story.faults.append(f"did not end within {LONGEST:.0f} s: {training.output()[-2000:]}")
    elif any(training.statuses()):
        story.faults.append(f"ended with {training.statuses()}: {training.output()[-2000:]}")
    else:
        story.done = True


def _reached(kill: Kill, training: Training, starts: int, seconds: float) -> bool:
    """Wait for the moment of a kill; return False if the training ended before."""
    if kill.moment is Moment.START:
        while training.is_running():
            if time.monotonic() - training.began >= kill.share * seconds:
                return True
            time.sleep(_POLL)
        return False
    first_step, seen, was_saving, state = None, 0, False, None
    while training.is_running():
        state = State(training.run, state)
        if state.count("compile") > starts:
            if first_step is None:
                first_step = max(state.step, state.resumed_at)
            seen += state.is_saving and not was_saving
            was_saving = state.is_saving
            reached, delay = {
                Moment.STEP: (state.step >= first_step + kill.count, 0.05),
                Moment.SAVE: (seen >= kill.count, 0.1),
                Moment.EVALUATION: (state.is_evaluating, 0.2),
                Moment.END: (state.step >= STEPS - 1, 1.0),
                Moment.AFTER: (state.has_ended, 0.2),
            }[kill.moment]
            if reached:
                time.sleep(kill.share * delay)
                return training.is_running()
        time.sleep(_POLL)
    return False


def _kill_worker(kill: Kill, training: Training, starts: int) -> Outcome:
    """Kill an input worker. The training must take another step, or end well."""
    deadline, process = (
        time.monotonic() + 10,
        training.processes[kill.process % len(training.processes)],
    )
    while training.is_running() and time.monotonic() < deadline:
        if workers := training.input_workers(process):
            state = State(training.run)
            outcome = Outcome(kill, state.where(starts))
            os.kill(workers[kill.process % len(workers)], signal.SIGKILL)
            limit = time.monotonic() + LIMIT
            while training.is_running() and State(training.run).step <= state.step:
                if time.monotonic() > limit:
                    outcome.faults.append(f"no step for {LIMIT:.0f} s after the kill")
                    return outcome
                time.sleep(_POLL)
            return outcome
        time.sleep(_POLL)
    return Outcome(kill, State(training.run).where(starts), faults=["there was no input worker"])


def _kill(kill: Kill, training: Training, starts: int) -> Outcome:
    """Kill the training, wait until all its processes have ended, and check how."""
    before = State(training.run)
    outcome = Outcome(kill, before.where(starts))
    killed = kill.process % len(training.processes)
    process = training.processes[killed]
    members = training.members(process)
    began = time.monotonic()
    terminates = kill.kind in (Kind.TERM, Kind.TERM_ALL, Kind.TERM_KILL)
    number = signal.SIGTERM if terminates else signal.SIGKILL
    if kill.kind in (Kind.TERM_ALL, Kind.KILL_ALL):
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    if kill.kind is Kind.TERM_KILL and not training.wait(kill.grace):
        process.kill()
    if not training.wait(LIMIT):
        outcome.faults.append(f"did not end within {LIMIT:.0f} s after {kill.kind}")
        return outcome
    outcome.seconds = time.monotonic() - began
    while training.members(process) and time.monotonic() - began < outcome.seconds + _ORPHANS_END:
        time.sleep(_POLL)
    if orphans := training.members(process):
        outcome.faults.append(f"{len(orphans)} of {len(members)} processes outlive their parent")
    after = State(training.run)
    if not terminates:
        outcome.where = after.where(starts)
    newest = max(after.checkpoints, default=0)
    outcome.repeated = max(after.step - newest, 0)
    _check_status(outcome, training, killed, after, newest)
    return outcome


def _check_status(
    outcome: Outcome, training: Training, killed: int, after: State, newest: int
) -> None:
    """Check exit statuses, that nothing is lost after SIGTERM, and that survivors say why they end.

    Args:
        outcome: receives the faults.
        training: it has ended.
        killed: index of the process that received the signal.
        after: what the run directory says now.
        newest: step of the newest checkpoint, or 0.
    """
    kind, (status, *others) = outcome.kill.kind, training.statuses_from(killed)
    terminates = kind not in (Kind.KILL, Kind.KILL_ALL)
    at_edge = outcome.where in ("start", "end")
    allowed, allowed_others = {0, _KILL}, {0, *_FAILED}
    if terminates:
        # Without a handler: before the training began, and after it ended.
        allowed = {0, _STOPPED} | ({_TERM} if at_edge else set())
        allowed_others = {0, _STOPPED} | (set(_FAILED) if at_edge else set())
    if kind is Kind.TERM_KILL:
        allowed |= {_KILL}
        allowed_others |= set(_FAILED)
    if status not in allowed or not set(others) <= allowed_others:
        outcome.faults.append(f"ended with {[status, *others]} after {kind}")
    output = training.output()
    if _STOPPED in (status, *others) and outcome.where != "start":
        if "stopped by SIGTERM after step" not in output:
            outcome.faults.append("does not say that it was stopped")
        if after.step != newest:
            outcome.faults.append(f"step {after.step} was taken, and {newest} is saved")
    if status == _KILL and set(others) & set(_FAILED) and f"process {killed}" not in output:
        outcome.faults.append(f"the others do not name process {killed}")
