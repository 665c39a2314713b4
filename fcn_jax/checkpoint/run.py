"""The checkpoints of a training run."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from fcn_jax.checkpoint import files, messages
from fcn_jax.checkpoint.spec import Spec
from fcn_jax.errors import CheckpointError, WriteError
from fcn_jax.runtime import atomic

_LEFTOVER = re.compile(r"\d+\.(orbax-checkpoint-tmp.*|deleted)")
"""Folders of a save or a deletion that was cut short."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint of a training run holds: the items `model`, `train` and `data`, and what was wrong with newer checkpoints."""

    step: int
    model: Any
    train: Any
    data: Any
    skipped: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one run, open for writing. The last two are kept, and the best by validation mIoU.

    Of a run of several processes, the first one deletes and scores.
    """

    def __init__(self, run: Path) -> None:
        """Open or make the run's `checkpoints` folder, and remove what killed processes left in it. Raises `WriteError`."""
        self._folder = (run / files.STEPS).absolute()
        self._writing: int | None = None
        self._unwritten: dict[int, float] = {}
        self._first_process = jax.process_index() == 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(
                f"{self._folder}: cannot be made ({error.strerror or error})"
            ) from error
        self._remove_leftovers()
        options = ocp.options.AsyncOptions(post_finalization_callback=self._list_files_of_save)
        items = {"model": ocp.StandardCheckpointHandler(), "train": ocp.StandardCheckpointHandler()}
        json_items = {"data": ocp.JsonCheckpointHandler(), "spec": ocp.JsonCheckpointHandler()}
        # Orbax logs a failed save from several threads, with a traceback in each; the error is
        # raised to the caller all the same.
        self._silence = contextlib.ExitStack()
        self._silence.enter_context(messages.quiet(logging.CRITICAL + 1))
        self._silence.enter_context(messages.quiet_threads())
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(**items, **json_items), async_options=options
        )

    def save(
        self, step: int, *, model: Mapping[str, Any], train: Any, data: Any, spec: Spec
    ) -> None:
        """Write in the background; a process killed meanwhile leaves the earlier checkpoints as they were.

        Raises:
            CheckpointError: this checkpoint, or the one before, which was still being written,
                cannot be written.
        """
        self.finish()
        directory = self._folder / str(step)
        args = ocp.args.Composite(
            model=ocp.args.StandardSave(dict(model)),
            train=ocp.args.StandardSave(train),
            data=ocp.args.JsonSave(data),
            spec=ocp.args.JsonSave(spec.to_dict()),
        )
        self._writing = step
        try:
            if directory.exists():  # a damaged one, which was passed over
                self._delete(directory)
            self._checkpointer.save(directory, args=args)
        except Exception as error:  # Orbax and TensorStore raise bare ones
            raise self._failed(error) from error

    def score(self, step: int, miou: float) -> None:
        """Note the mIoU of a checkpoint; it is written as soon as the checkpoint is."""
        self._unwritten[step] = miou
        self._settle()

    def evaluated(self, step: int) -> bool:
        """Whether the checkpoint of a step has a score."""
        return files.evaluation(self._folder / str(step)) is not None

    def check(self) -> None:
        """Raise `CheckpointError` if the checkpoint that is being written has failed already. Does not wait."""
        try:
            self._checkpointer.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def finish(self) -> None:
        """Wait until everything is written. Raises `CheckpointError` if it cannot be."""
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self._writing = None
        self._settle()

    def latest_step(self) -> int | None:
        """The last step whose checkpoint is complete, or None."""
        return max(files.steps(self._folder), default=None)

    def restore(self, *, model: Any, train: Any) -> Restored | None:
        """The newest checkpoint that is whole, or None where the run has none; `model` and `train` are trees of arrays or shapes.

        Newer ones that are damaged are set aside as `STEP.damaged`.

        Raises:
            CheckpointError: there are checkpoints, and none can be restored.
        """
        args = ocp.args.Composite(
            model=ocp.args.StandardRestore(model),
            train=ocp.args.StandardRestore(train),
            data=ocp.args.JsonRestore(),
        )
        skipped: dict[int, str] = {}
        for step in reversed(files.steps(self._folder)):
            directory = self._folder / str(step)
            fault = files.fault(directory, ("model", "train", "data", "spec"))
            if fault is None:
                try:
                    items = self._checkpointer.restore(directory, args=args)
                except Exception as error:  # as above
                    fault = messages.first_line(error)
                else:
                    for other in skipped:
                        self._set_aside(self._folder / str(other))
                    faults = tuple(
                        f"checkpoint {other} is damaged ({fault})"
                        for other, fault in skipped.items()
                    )
                    return Restored(step, items["model"], items["train"], items["data"], faults)
            skipped[step] = fault
        if not skipped:
            return None
        faults = tuple(f"checkpoint {step}: {fault}" for step, fault in skipped.items())
        raise CheckpointError(
            f"{self._folder}: no checkpoint can be restored: {'; '.join(faults)}; take one from a backup, or start another run"
        )

    def close(self) -> None:
        """Wait until everything is written. Raises `CheckpointError` if it cannot be."""
        try:
            self.finish()
        finally:
            with contextlib.suppress(Exception):  # `finish` has raised it
                self._checkpointer.close()
            self._remove_leftovers()
            self._silence.close()

    def _failed(self, error: Exception) -> CheckpointError:
        directory, self._writing = self._folder / str(self._writing), None
        self._remove_leftovers()
        messages.SILENCED.append(self._silence.pop_all())
        atexit.register(self._remove_leftovers)
        return CheckpointError(
            f"{directory}: the checkpoint cannot be written ({messages.reason(error)})"
        )

    def _list_files_of_save(self) -> None:
        """Runs in Orbax's thread, when all items are written and the folder still has its temporary name."""
        for directory in self._folder.glob(f"{self._writing}.orbax-checkpoint-tmp*"):
            files.list_files(directory)

    def _settle(self) -> None:
        """Write the scores of complete checkpoints, and delete those that are not to be kept."""
        for step in [step for step in self._unwritten if (self._folder / str(step)).is_dir()]:
            miou = self._unwritten.pop(step)
            if self._first_process:
                atomic.write_json(self._folder / str(step) / files.SCORE, {files.METRIC: miou})
        if not self._first_process:
            return
        steps = files.steps(self._folder)
        scored = [step for step in steps if files.rank(self._folder / str(step)) >= 0]
        best = max(
            scored, key=lambda step: (files.rank(self._folder / str(step)), step), default=None
        )
        for step in steps[:-2]:
            # What is not scored yet may be the best.
            if step != best and step not in self._unwritten:
                self._delete(self._folder / str(step))

    def _delete(self, directory: Path) -> None:
        """Renamed first, since a process that is killed here must not leave half a checkpoint under its name."""
        if self._first_process:
            doomed = directory.with_name(f"{directory.name}.deleted")
            shutil.rmtree(doomed, ignore_errors=True)
            directory.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _set_aside(self, directory: Path) -> None:
        if self._first_process:
            aside = directory.with_name(f"{directory.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            directory.rename(aside)

    def _remove_leftovers(self) -> None:
        if self._first_process and self._folder.is_dir():
            until = time.monotonic() + 2
            # The threads of a failed save may still add a file, and the folders above it.
            while found := [
                path for path in self._folder.iterdir() if _LEFTOVER.fullmatch(path.name)
            ]:
                for path in found:
                    shutil.rmtree(path, ignore_errors=True)
                if time.monotonic() > until:
                    break
                time.sleep(0.1)
