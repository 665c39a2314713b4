"""Write and restore the checkpoints of a training run."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from fcn_jax.checkpoint import files, messages, place
from fcn_jax.checkpoint.spec import Spec
from fcn_jax.errors import CheckpointError
from fcn_jax.runtime import atomic

_LEFTOVER = re.compile(r"\d+\.(orbax-checkpoint-tmp.*|deleted)")
"""Matches the folders that an interrupted save or deletion leaves."""

_LEFTOVER_SCORE = re.compile(r"\.score\.[0-9a-f]{8}\.json")
"""Matches the file that an interrupted `atomic.write_json` of a score leaves in a checkpoint."""


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

    In a run of several processes, all save and restore, but only the first one deletes checkpoints,
    writes scores, and decides which checkpoint is restored.
    """

    def __init__(self, run: Path, retention: files.Retention | None = None) -> None:
        """Open or create the run's `checkpoints` folder, and remove leftovers of killed processes.

        Args:
            run: run directory.
            retention: which checkpoints are kept.

        Raises:
            WriteError: the folder cannot be created.
        """
        self._folder = place.absolute(run / files.STEPS)
        self._retention = retention or files.Retention()
        self._writing: int | None = None
        self._unwritten: dict[int, dict[str, Any]] = {}
        self._first_process = jax.process_index() == 0
        with atomic.write_errors(self._folder, "cannot be made"):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        options = ocp.options.AsyncOptions(
            # Orbax measures its limit of 20 minutes with the clock that users and servers set. A
            # clock that is set forward during a save would make it fail.
            timeout_secs=10**9,
            # If a folder cannot be made in the background, Orbax's other threads wait for it for
            # minutes, and the process cannot end.
            create_directories_asynchronously=jax.process_count() > 1,
            post_finalization_callback=self._list_files_of_save,
        )
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

        The arrays are placed as the given ones are, whatever the number of devices and processes
        that saved them. Newer checkpoints that are damaged are renamed to `STEP.damaged`.

        Args:
            model: tree of arrays, or of shapes with shardings, like that of the stored model.
            train: the same of the stored training state.
            ema: the same of the stored averages; None if there are none.

        Raises:
            CheckpointError: the run has checkpoints, but none can be restored.
        """
        targets = {"model": model, "train": train, **({} if ema is None else {files.EMA: ema})}
        args = ocp.args.Composite(
            data=ocp.args.JsonRestore(),
            **{
                name: ocp.args.StandardRestore(jax.tree.map(_target, tree))
                for name, tree in targets.items()
            },
        )
        skipped: dict[int, str] = {}
        for step in _agreed(list(reversed(files.steps(self._folder)))):
            directory = self._folder / str(step)
            fault = files.fault(directory, files.RUN_ITEMS) if self._first_process else None
            if _agreed([fault is None])[0]:
                try:
                    items = self._checkpointer.restore(directory, args=args)
                    break
                except Exception as error:  # Orbax and TensorStore raise many types
                    fault = messages.first_line(error)
            skipped[step] = fault or "the first process says so"
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

        Orbax calls this in its thread after it has written all items. On local disks, the folder
        still has its temporary name.
        """
        for directory in self._folder.iterdir():
            if directory.name.startswith(f"{self._writing}.orbax-checkpoint-tmp") or (
                place.is_remote(directory) and directory.name == str(self._writing)
            ):
                files.list_files(directory)

    def _settle(self) -> None:
        """Write the scores of complete checkpoints, and delete checkpoints that are not kept."""
        steps = files.steps(self._folder)
        for step in self._unwritten.keys() & set(steps):
            score = self._unwritten.pop(step)
            if self._first_process:
                place.write_json(self._folder / str(step) / files.SCORE, score)
        if not self._first_process:
            return
        ranks = {step: files.rank(self._folder / str(step)) for step in steps}
        # A checkpoint without a written score may be the best one.
        for step in ranks.keys() - self._retention.kept(ranks) - self._unwritten.keys():
            self._delete(self._folder / str(step))

    def _delete(self, directory: Path) -> None:
        """Delete a checkpoint.

        On local disks it is renamed first, so that a process killed here leaves no partial
        checkpoint under the final name.
        """
        if self._first_process:
            remote = place.is_remote(directory)
            with atomic.write_errors(directory, "cannot be deleted"):
                place.remove(directory if remote else _renamed(directory, "deleted"))

    def _remove_leftovers(self) -> None:
        if self._first_process and self._folder.is_dir():
            local = not place.is_remote(self._folder)  # object stores write whole files
            for step in files.steps(self._folder) if local else ():
                for path in (self._folder / str(step)).iterdir():
                    if _LEFTOVER_SCORE.fullmatch(path.name):
                        path.unlink(missing_ok=True)
            until = time.monotonic() + 2
            # The threads of a failed save may still create files and their parent folders.
            while found := [path for path in self._folder.iterdir() if _is_leftover(path)]:
                for path in found:
                    place.remove(path)
                if time.monotonic() > until:
                    break
                time.sleep(0.1)


def _is_leftover(path: Path) -> bool:
    """Return whether an interrupted save or deletion left a folder."""
    incomplete = files.is_named_by_step(path) and not place.is_complete(path)
    return incomplete or _LEFTOVER.fullmatch(path.name) is not None


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    """The target of an array for Orbax. The sharding with which it was saved plays no part."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here
    )


def _agreed(values: list[int]) -> list[int]:
    """Return the first process's list on all of them, which may see the folder at other times."""
    if jax.process_count() == 1:
        return values
    count = int(multihost_utils.broadcast_one_to_all(np.int64(len(values))))
    if count == 0:
        return []
    mine = np.resize(np.array(values or [0], np.int64), count)
    return [int(value) for value in multihost_utils.broadcast_one_to_all(mine)]


def _renamed(directory: Path, ending: str) -> Path:
    """Rename a checkpoint to `STEP.ending`, which replaces an earlier one of that name."""
    target = directory.with_name(f"{directory.name}.{ending}")
    place.remove(target)
    return directory.rename(target)
