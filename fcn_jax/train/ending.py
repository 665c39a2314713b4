"""How a training that cannot go on ends: one line that says what happened, what is saved, and how to continue."""

from __future__ import annotations

import shlex
from pathlib import Path

import jax

from fcn_jax.errors import CheckpointError, FcnJaxError, TrainingError, WriteError


def after_a_step(
    error: BaseException, run: Path, number: int, saved: int | None, problem: str | None
) -> BaseException:
    """The error to raise instead of another; it says what is saved and how to go on."""
    again = f"fcn-jax train --run {shlex.quote(str(run))} --resume"
    if saved is None:
        kept = "there is no checkpoint to go on from"
    elif isinstance(error, TrainingError) and problem is None and saved < number:
        kept = f"the last checkpoint is of step {saved}"
    else:
        kept = f"the work up to step {saved} is saved; go on with: {again}"
    if problem:
        kept = f"step {number} cannot be saved ({problem}); {kept}"
    said = f"{_said(error)}. Stopped after step {number}: {kept}"
    return _like(error, said)


def before_any_step(error: BaseException) -> BaseException:
    """The error to raise instead of another if no step was taken."""
    return error if isinstance(error, FcnJaxError) else _like(error, _said(error))


def _like(error: BaseException, message: str) -> BaseException:
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt(message)
    if isinstance(error, FcnJaxError) and not isinstance(error, WriteError | CheckpointError):
        return type(error)(message)
    # A disk that is full, or a folder that is gone, is no mistake in the input.
    return TrainingError(message)


def _said(error: BaseException) -> str:
    if isinstance(error, FcnJaxError):
        return str(error).rstrip(".")
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return f"out of memory: lower data.batch_size, data.crop or data.workers, or raise optim.accumulate_steps ({gist(error)})"
    return f"{gist(error)} (--debug shows where)"


def gist(error: BaseException) -> str:
    """The type of an error, unless it is one for users, and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0][:300] if lines else ""
    return (
        line
        if isinstance(error, FcnJaxError) and line
        else f"{type(error).__name__}{': ' if line else ''}{line}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA could not allocate memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
