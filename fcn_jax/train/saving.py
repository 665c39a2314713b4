"""The state of a run and its checkpoints: what is saved is finite, and belongs to the last completed step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.errors import TrainingError, WriteError
from fcn_jax.models.names import named
from fcn_jax.runtime import atomic
from fcn_jax.train import logs, optim
from fcn_jax.train import step as train_step
from fcn_jax.train.ending import gist


@dataclasses.dataclass(frozen=True)
class Reached:
    """What a checkpoint after the last completed step holds."""

    number: int
    state: train_step.TrainState
    position: Any


Pending = tuple[int, dict[str, jax.Array], dict[str, np.ndarray]]
"""A step whose loss was not looked at yet: its number, metrics and batch."""


def _items(state: train_step.TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state as a checkpoint's items `model` and `train`."""
    arrays = {
        name: leaf[...]
        for part in (state.params, state.batch_stats)
        for name, leaf in named(part).items()
    }
    return arrays, {"step": state.step, "opt_state": state.opt_state}


def save(checkpoints: checkpoint.Checkpoints, reached: Reached, spec: checkpoint.Spec) -> None:
    """Begin to write a checkpoint. Raises `CheckpointError` if it, or the one before, cannot be written."""
    model, rest = _items(reached.state)
    checkpoints.save(reached.number, model=model, train=rest, data=reached.position, spec=spec)


def save_the_work(
    checkpoints: checkpoint.Checkpoints,
    reached: Reached,
    pending: Pending | None,
    saved: int,
    spec: checkpoint.Spec,
) -> str | None:
    """Save the last completed step, if it is not; the reason if that cannot be done."""
    problem = None
    if reached.number > saved:
        if jax.process_count() > 1:
            problem = "other processes would have to take part in saving it"
        elif any(leaf.is_deleted() for leaf in jax.tree.leaves(reached.state)):
            problem = "the step that failed had taken over its memory"
        else:
            try:
                if pending and not (
                    math.isfinite(float(pending[1]["loss"]))
                    and bool(_all_finite(reached.state.params))
                ):
                    problem = "its numbers are not finite"
                else:
                    save(checkpoints, reached, spec)
            except Exception as error:
                problem = gist(error)
    try:
        checkpoints.finish()
    except Exception as error:
        problem = problem or gist(error)
    return problem


def close_quietly(checkpoints: checkpoint.Checkpoints) -> None:
    """Close, without an error for what could not be saved."""
    with contextlib.suppress(Exception):  # what could not be saved was said
        checkpoints.close()


def restored(
    checkpoints: checkpoint.Checkpoints,
    state: train_step.TrainState,
    position: Any,
    progress: logs.Progress,
) -> tuple[int, train_step.TrainState, Any]:
    """Step, state and position in the data of the newest checkpoint that is whole; those given where there is none."""
    arrays, rest = _items(state)
    found = checkpoints.restore(model=arrays, train=rest)
    if found is None:
        return 0, state, position
    for fault in found.skipped:
        progress.say(
            f"warning: {fault}; it is set aside, and the one before it is taken, of step {found.step}"
        )

    def filled(tree: nnx.State) -> nnx.State:
        flat = [
            (path, leaf.replace(found.model[".".join(map(str, path))]))
            for path, leaf in nnx.to_flat_state(tree)
        ]
        return nnx.from_flat_state(flat)

    restored = train_step.TrainState(
        found.train["step"],
        filled(state.params),
        filled(state.batch_stats),
        found.train["opt_state"],
    )
    return found.step, restored, found.data


@jax.jit
def _all_finite(params: Any) -> jax.Array:
    return jax.numpy.stack(
        [jax.numpy.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
    ).all()


def require_finite(pending: Pending, run: Path, state: train_step.TrainState) -> None:
    """Raise `TrainingError` if a step's loss is not finite, or the parameters after it are not: what is saved must be good."""
    finite_loss(pending, run, state)
    if not bool(_all_finite(state.params)):
        raise _evidence(pending, run, state)


def finite_loss(pending: Pending, run: Path, state: train_step.TrainState) -> float:
    """The loss of a step, once it is computed. Raises `TrainingError`, leaving the evidence in the run, if it is not finite."""
    loss = float(pending[1]["loss"])
    if math.isfinite(loss):
        return loss
    raise _evidence(pending, run, state)


def _evidence(pending: Pending, run: Path, state: train_step.TrainState) -> TrainingError:
    number, metrics, batch = pending
    loss, folder = float(metrics["loss"]), run / "nonfinite"
    names = optim.parameter_names(state.params)
    broken = [
        n
        for n, leaf in zip(names, jax.tree.leaves(state.params), strict=True)
        if not bool(jax.numpy.isfinite(leaf).all())
    ]
    report = {
        "step": number,
        "loss": str(loss),
        "grad_norm": str(float(metrics["grad_norm"])),
        "nonfinite_parameters_after": broken,
    }
    what = f"the loss of step {number} is {loss}"
    if math.isfinite(loss):
        what += f", but after it {len(broken)} parameters are not finite"
    try:
        with atomic.replacing(folder / "batch.npz") as temporary:
            np.savez_compressed(temporary, image=batch["image"], mask=batch["mask"])
        atomic.write_json(folder / "report.json", report)
        where = f"the batch and the names of the {len(broken)} parameters that are no longer finite are in {folder}"
    except WriteError as error:
        where = str(error)
    return TrainingError(
        f"{what}; {where}. Start another run with a lower optim.lr, or with optim.warmup_steps"
    )
