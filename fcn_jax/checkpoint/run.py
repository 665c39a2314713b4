"""Write and restore the checkpoints of a training run."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from fcn_jax.checkpoint import files, messages
from fcn_jax.checkpoint.spec import Spec
from fcn_jax.errors import CheckpointError
from fcn_jax.runtime import atomic

_LEFTOVER = re.compile(r"\d+\.(orbax-checkpoint-tmp.*|deleted)")
"""Matches the folders that an interrupted save or deletion leaves."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """The contents of a checkpoint of a training run.

    Attributes:
        step: step of the checkpoint.
        model: parameters and batch statistics by dotted name.
        train: optimizer state and step.
        data: position of the input pipeline.
        ema: averages of the weights by dotted name, or None.
        skipped: one message for each newer checkpoint that is damaged.
    """

    step: int
    model: Any
    train: Any
    data: Any
    ema: Any
    skipped: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one run, open for writing.

    The last two checkpoints and the one with the best validation mIoU are kept. In a run of several
    processes, only the first process deletes checkpoints and writes scores.
    """

    def __init__(self, run: Path) -> None:
        """Open or create the run's `checkpoints` folder, and remove leftovers of killed processes.

        Raises:
            WriteError: the folder cannot be created.
        """
        self._folder = (run / files.STEPS).absolute()
        self._writing: int | None = None
        self._unwritten: dict[int, dict[str, Any]] = {}
        self._first_process = jax.process_index() == 0
        with atomic.write_errors(self._folder, "cannot be made"):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        options = ocp.options.AsyncOptions(post_finalization_callback=self._list_files_of_save)
        items = {name: ocp.StandardCheckpointHandler() for name in ("model", "train", files.EMA)}
        json_items = {"data": ocp.JsonCheckpointHandler(), "spec": ocp.JsonCheckpointHandler()}
        # Orbax logs a failed save from several threads, each with a traceback. The caller receives
        # the error as an exception in any case.
        self._silence = contextlib.ExitStack()
        self._silence.enter_context(messages.quiet(logging.CRITICAL + 1))
        self._silence.enter_context(messages.quiet_threads())
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(**items, **json_items), async_options=options
        )

    def save(
        self,
        step: int,
        *,
        model: Mapping[str, Any],
        train: Any,
        data: Any,
        spec: Spec,
        ema: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint in the background.

        If the process is killed during the save, the earlier checkpoints do not change.

        Raises:
            CheckpointError: this checkpoint cannot be written, or the previous save, which was
                still running, failed.
        """
        self.finish()
        directory = self._folder / str(step)
        args = ocp.args.Composite(
            model=ocp.args.StandardSave(dict(model)),
            train=ocp.args.StandardSave(train),
            data=ocp.args.JsonSave(data),
            spec=ocp.args.JsonSave(spec.to_dict()),
            **({} if ema is None else {files.EMA: ocp.args.StandardSave(dict(ema))}),
        )
        self._writing = step
        with self._write_errors():
            if directory.exists():  # a damaged checkpoint that `restore` skipped
                self._delete(directory)
            self._checkpointer.save(directory, args=args)

    def score(self, step: int, miou: float, weights: str = "raw") -> None:
        """Set the mIoU of a checkpoint. It is written when the checkpoint is complete.

        `weights` says which weights have it: "raw" or "ema".
        """
        self._unwritten[step] = {files.METRIC: miou, "weights": weights}
        self._settle()

    def check(self) -> None:
        """Check, without waiting, whether the running save has failed.

        Raises:
            CheckpointError: the save has failed.
        """
        with self._write_errors():
            self._checkpointer.check_for_errors()

    def finish(self) -> None:
        """Wait until the running save is complete.

        Raises:
            CheckpointError: the checkpoint cannot be written.
        """
        with self._write_errors():
            self._checkpointer.wait_until_finished()
        self._writing = None
        self._settle()

    def latest_step(self) -> int | None:
        """Return the last step that has a complete checkpoint, or None."""
        return max(files.steps(self._folder), default=None)

    def restore(self, *, model: Any, train: Any, ema: Any = None) -> Restored | None:
        """Return the newest intact checkpoint, or None if the run has no checkpoints.

        Newer checkpoints that are damaged are renamed to `STEP.damaged`.

        Args:
            model: tree of arrays or shapes like that of the stored model.
            train: tree of arrays or shapes like that of the stored training state.
            ema: tree of arrays or shapes like that of the stored averages; None if there are none.

        Raises:
            CheckpointError: the run has checkpoints, but none can be restored.
        """
        args = ocp.args.Composite(
            model=ocp.args.StandardRestore(model),
            train=ocp.args.StandardRestore(train),
            data=ocp.args.JsonRestore(),
            **({} if ema is None else {files.EMA: ocp.args.StandardRestore(ema)}),
        )
        skipped: dict[int, str] = {}
        for step in reversed(files.steps(self._folder)):
            directory = self._folder / str(step)
            fault = files.fault(directory, files.RUN_ITEMS)
            if fault is None:
                try:
                    items = self._checkpointer.restore(directory, args=args)
                    break
                except Exception as error:  # Orbax and TensorStore raise many types
                    fault = messages.first_line(error)
            skipped[step] = fault
        else:
            if not skipped:
                return None
            faults = "; ".join(f"checkpoint {step}: {fault}" for step, fault in skipped.items())
            raise CheckpointError(
                f"{self._folder}: no checkpoint can be restored: {faults}; take one from a backup, "
                "or start another run"
            )
        if self._first_process:
            for other in skipped:
                _renamed(self._folder / str(other), "damaged")
        notes = tuple(f"checkpoint {other} is damaged ({why})" for other, why in skipped.items())
        average = None if ema is None else items[files.EMA]
        return Restored(step, items["model"], items["train"], items["data"], average, notes)

    def close(self) -> None:
        """Wait until the running save is complete, then release all resources.

        Raises:
            CheckpointError: the checkpoint cannot be written.
        """
        try:
            self.finish()
        finally:
            with contextlib.suppress(Exception):  # `finish` has already raised the error
                self._checkpointer.close()
            self._remove_leftovers()
            self._silence.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Turn an error of the block into one of the checkpoint that is being written."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many types
            directory, self._writing = self._folder / str(self._writing), None
            self._remove_leftovers()
            messages.SILENCED.append(self._silence.pop_all())
            atexit.register(self._remove_leftovers)
            raise CheckpointError(
                f"{directory}: the checkpoint cannot be written ({messages.reason(error)})"
            ) from error

    def _list_files_of_save(self) -> None:
        """Write the list of files into the checkpoint.

        Orbax calls this in its thread after it has written all items. The folder still has its
        temporary name.
        """
        for directory in self._folder.glob(f"{self._writing}.orbax-checkpoint-tmp*"):
            files.list_files(directory)

    def _settle(self) -> None:
        """Write the scores of complete checkpoints, and delete checkpoints that are not kept."""
        for step in [step for step in self._unwritten if (self._folder / str(step)).is_dir()]:
            score = self._unwritten.pop(step)
            if self._first_process:
                atomic.write_json(self._folder / str(step) / files.SCORE, score)
        if not self._first_process:
            return
        best = files.ranked(self._folder)[:1]
        for step in files.steps(self._folder)[:-2]:
            directory = self._folder / str(step)
            # A checkpoint without a written score may be the best one.
            if directory not in best and step not in self._unwritten:
                self._delete(directory)

    def _delete(self, directory: Path) -> None:
        """Delete a checkpoint.

        It is renamed first, so that a process killed here leaves no partial checkpoint under the
        final name.
        """
        if self._first_process:
            shutil.rmtree(_renamed(directory, "deleted"), ignore_errors=True)

    def _remove_leftovers(self) -> None:
        if self._first_process and self._folder.is_dir():
            until = time.monotonic() + 2
            # The threads of a failed save may still create files and their parent folders.
            while found := [
                path for path in self._folder.iterdir() if _LEFTOVER.fullmatch(path.name)
            ]:
                for path in found:
                    shutil.rmtree(path, ignore_errors=True)
                if time.monotonic() > until:
                    break
                time.sleep(0.1)


def _renamed(directory: Path, ending: str) -> Path:
    """Rename a checkpoint to `STEP.ending`, which replaces an earlier one of that name."""
    target = directory.with_name(f"{directory.name}.{ending}")
    shutil.rmtree(target, ignore_errors=True)
    return directory.rename(target)
