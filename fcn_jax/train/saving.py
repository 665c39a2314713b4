"""Completed steps and their checkpoints. Only finite values are saved."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.config.sections import TrainConfig
from fcn_jax.errors import TrainingError, WriteError
from fcn_jax.models.names import named
from fcn_jax.runtime import atomic, distributed
from fcn_jax.train.ending import gist
from fcn_jax.train.groups import parameter_names
from fcn_jax.train.step import TrainState


@jax.jit
def _all_finite(params: Any) -> jax.Array:
    leaves = [jax.numpy.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
    return jax.numpy.stack(leaves).all()


@dataclasses.dataclass(frozen=True)
class Completed:
    """A completed step: the contents of a checkpoint after it, and its batch and metrics.

    Attributes:
        number: number of the step; 0 before the first one.
        state: state after it. The next step deletes its arrays.
        position: position in the data after it.
        metrics: "loss" and "grad_norm", f32[]; None where this process took no step yet.
        batch: its images and masks; None where this process took no step yet.
    """

    number: int
    state: TrainState
    position: Any
    metrics: dict[str, jax.Array] | None = None
    batch: dict[str, np.ndarray] | None = None

    def loss(self, run: Path, state: TrainState) -> float:
        """Wait for the loss and return it.

        Args:
            run: run directory, for the evidence if the loss is not finite.
            state: the newest state, whose parameters the evidence names.

        Raises:
            TrainingError: the loss is not finite.
        """
        assert self.metrics is not None
        loss = float(self.metrics["loss"])
        if not math.isfinite(loss):
            raise self._failure(loss, run, state)
        return loss

    def is_finite(self) -> bool:
        """Return whether loss and parameters are finite."""
        loss = 0.0 if self.metrics is None else float(self.metrics["loss"])
        return math.isfinite(loss) and bool(_all_finite(self.state.params))

    def require_finite(self, run: Path) -> None:
        """Raise `TrainingError`, with the evidence in the run, unless `is_finite`."""
        if self.metrics is not None and not self.is_finite():
            raise self._failure(float(self.metrics["loss"]), run, self.state)

    def save(self, checkpoints: checkpoint.Checkpoints, spec: checkpoint.Spec) -> None:
        """Begin to write a checkpoint.

        Raises:
            CheckpointError: this checkpoint or the one before cannot be written.
        """
        items = _items(self.state)
        checkpoints.save(self.number, **items, data=self.position, spec=spec)

    def _failure(self, loss: float, run: Path, state: TrainState) -> TrainingError:
        """Write the evidence to `nonfinite/` in the run directory, and return the error."""
        assert self.metrics is not None
        assert self.batch is not None
        names, leaves = parameter_names(state.params), jax.tree.leaves(state.params)
        broken = [
            name
            for name, leaf in zip(names, leaves, strict=True)
            if not bool(jax.numpy.isfinite(leaf).all())
        ]
        report = {
            "step": self.number,
            "loss": str(loss),
            "grad_norm": str(float(self.metrics["grad_norm"])),
            "nonfinite_parameters_after": broken,
        }
        what = f"the loss of step {self.number} is {loss}"
        if math.isfinite(loss):
            what += f", but after it {len(broken)} parameters are not finite"
        folder, number = run / "nonfinite", distributed.index()
        try:
            # Each process has a part of the batch.
            name = f"batch_{number}.npz" if number else "batch.npz"
            with atomic.replacing(folder / name) as temporary:
                np.savez_compressed(temporary, image=self.batch["image"], mask=self.batch["mask"])
            if number == 0:
                atomic.write_json(folder / "report.json", report)
            where = (
                f"the batch and the names of the {len(broken)} parameters that are no longer "
                f"finite are in {folder}"
            )
        except WriteError as error:
            where = str(error)
        return TrainingError(
            f"{what}; {where}. Start another run with a lower optim.lr, or with optim.warmup_steps "
            "or optim.clip_norm"
        )


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    """Return the state as the items `model`, `train` and perhaps `ema` of a checkpoint."""

    def arrays(*parts: nnx.State) -> dict[str, Any]:
        return {name: leaf[...] for part in parts for name, leaf in named(part).items()}

    items = {
        "model": arrays(state.params, state.batch_stats),
        "train": {"step": state.step, "opt_state": state.opt_state},
    }
    return items if state.ema is None else {**items, "ema": arrays(state.ema)}


def save_after_error(
    checkpoints: checkpoint.Checkpoints,
    reached: Completed,
    saved: int,
    spec: checkpoint.Spec,
) -> str | None:
    """Save the last completed step, unless it is saved. Return the reason if that is impossible.

    Several processes can only save together, so nothing is saved if one of them fails.
    """
    problem = None
    if distributed.count() > 1:
        return None
    if reached.number > saved:
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(reached.state)):
            problem = "the step that failed had taken over its memory"
        else:
            try:
                if reached.is_finite():
                    reached.save(checkpoints, spec)
                else:
                    problem = "its numbers are not finite"
            except Exception as error:
                problem = gist(error)
    try:
        checkpoints.finish()
    except Exception as error:
        problem = problem or gist(error)
    # What failed after the step was complete, such as the deletion of an older one, lost nothing.
    return None if checkpoints.latest_step() == reached.number else problem


def retention(settings: TrainConfig) -> checkpoint.Retention:
    """Return which checkpoints are kept."""
    return checkpoint.Retention(settings.keep_latest, settings.keep_best, settings.keep_every_steps)


def close_quietly(checkpoints: checkpoint.Checkpoints) -> None:
    """Close without an error: a failed save was reported before."""
    if distributed.has_failed():  # A save that is not complete would wait for that process.
        return
    with contextlib.suppress(Exception):
        checkpoints.close()


def restored(
    checkpoints: checkpoint.Checkpoints, start: Completed, say: Callable[[str], None]
) -> Completed:
    """Return the newest checkpoint that is not damaged, or `start` if there is no checkpoint."""
    found = checkpoints.restore(**_items(start.state))
    if found is None:
        return start
    for fault in found.skipped:
        say(f"warning: {fault}; it is set aside, and that of step {found.step} is used")

    def filled(part: nnx.State, arrays: Any) -> nnx.State:
        return nnx.map_state(
            lambda path, leaf: leaf.replace(arrays[".".join(map(str, path))]), part
        )

    average = start.state.ema
    state = TrainState(
        found.train["step"],
        filled(start.state.params, found.model),
        filled(start.state.batch_stats, found.model),
        found.train["opt_state"],
        None if average is None else filled(average, found.ema),
    )
    return Completed(found.step, state, found.data)
