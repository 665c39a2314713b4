"""The error that ends a run: what happened, what is saved, and how to continue, in one line."""

from __future__ import annotations

import shlex
from pathlib import Path

import jax

from fcn_jax.errors import CheckpointError, FcnJaxError, TrainingError, WriteError
from fcn_jax.runtime.distributed import PeerError


def after_a_step(
    error: BaseException, run: Path, number: int, saved: int | None, problem: str | None
) -> BaseException:
    """Return the error to raise instead of `error`, with what is saved and how to continue.

    Args:
        error: the error that ended the run.
        run: run directory.
        number: last completed step, at least 1.
        saved: step of the newest checkpoint, or None.
        problem: reason that the last completed step could not be saved, or None.
    """
    again = f"fcn-jax train --workdir {shlex.quote(str(run))}"
    if saved is None:
        kept = "there is no checkpoint to continue from"
    elif (
        isinstance(error, TrainingError)
        and not isinstance(error, PeerError)
        and problem is None
        and saved < number
    ):
        kept = f"the last checkpoint is of step {saved}"
    else:
        kept = f"the work up to step {saved} is saved; continue with: {again}"
    if problem:
        kept = f"step {number} cannot be saved ({problem}); {kept}"
    return _like(error, f"{_said(error)}. Stopped after step {number}: {kept}")


def before_any_step(error: BaseException) -> BaseException:
    """Return the error to raise instead of `error` if no step was taken."""
    return error if isinstance(error, FcnJaxError) else _like(error, _said(error))


def _like(error: BaseException, message: str) -> BaseException:
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt(message)
    if isinstance(error, FcnJaxError) and not isinstance(error, WriteError | CheckpointError):
        return type(error)(message)
    # A full disk or a removed folder is not a mistake in the input.
    return TrainingError(message)


def _said(error: BaseException) -> str:
    if isinstance(error, FcnJaxError):
        return str(error).rstrip(".")
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if is_out_of_memory(error):
        return (
            "out of memory: lower data.batch_size, data.crop_size or data.num_workers, or raise "
            f"optim.accumulate_steps ({gist(error)})"
        )
    return f"{gist(error)} (--debug shows where)"


def gist(error: BaseException) -> str:
    """Return the first line of an error's message, after its type unless it is a `FcnJaxError`."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
    if isinstance(error, FcnJaxError) and line:
        return line
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python or XLA could not allocate memory."""
    is_xlas = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return is_xlas or isinstance(error, MemoryError)
