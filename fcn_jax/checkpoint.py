"""Checkpoints on disk, by Orbax.

A checkpoint is a directory with the items `model` (parameters and batch statistics by dotted name) and `spec` (what to build, for which
classes). Those of a training run also hold `train` (optimiser and step) and `data` (the input pipeline's position). Each appears whole
or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from fcn_jax import registry
from fcn_jax.api import Classes
from fcn_jax.errors import CheckpointError
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import ModelSpec, Segmenter, build

FORMAT = 1
METRIC = "miou"
STEPS = "checkpoints"
"""The folder of a run that holds its checkpoints."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a checkpoint says about itself.

    Attributes:
        model: what to build.
        classes: names and colors, or None for converted weights, which come without.
        plugins: name, distribution and version of the backbone and heads.
        weights: record of the weights that it started from, or None.
    """

    model: ModelSpec
    classes: Classes | None = None
    plugins: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Spec:
        """The inverse of `to_dict`."""
        classes = table["classes"]
        if classes is not None:
            classes = Classes(tuple(classes["names"]), tuple((r, g, b) for r, g, b in classes["palette"]))
        return cls(ModelSpec(**table["model"]), classes, table["plugins"], table["weights"])


def describe(model: ModelSpec, classes: Classes | None = None, weights: Mapping[str, Any] | None = None) -> Spec:
    """The spec of a model, with the plugins that it is built from."""
    plugins = registry.default()
    records = {"backbone": plugins.record("backbones", model.backbone)}
    for part, name in (("head", model.head), ("aux_head", model.aux_head)):
        if name is not None:
            records[part] = plugins.record("heads", name)
    return Spec(model, classes, records, weights)


def arrays(module: nnx.Module) -> dict[str, Any]:
    """A module's parameters and batch statistics by dotted name."""
    return {name: leaf[...] for name, leaf in leaves(module).items()}


def require_empty(directory: str | Path) -> Path:
    """The absolute path of a directory to write. Raises `CheckpointError` if there is something there already."""
    path = Path(directory).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{directory}: exists and is not empty; name another directory")
    return path


def save_model(directory: str | Path, spec: Spec, tensors: Mapping[str, Any]) -> None:
    """Write a checkpoint of a model alone.

    Raises:
        CheckpointError: the directory exists and is not empty.
    """
    directory = require_empty(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        # What is compressed stays in memory until it is on disk, so no more is at a time than twice the largest array.
        at_a_time = 2e-9 * max(1, *(array.nbytes for array in tensors.values()))
        model = ocp.StandardCheckpointHandler(save_concurrent_gb=at_a_time)
        with (
            _quiet(),
            ocp.Checkpointer(ocp.CompositeCheckpointHandler(model=model, spec=ocp.JsonCheckpointHandler())) as checkpointer,
        ):
            args = ocp.args.Composite(model=ocp.args.StandardSave(dict(tensors)), spec=ocp.args.JsonSave(spec.to_dict()))
            checkpointer.save(temporary / "whole", args=args)
        if directory.exists():
            directory.rmdir()
        os.replace(temporary / "whole", directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find(path: str | Path) -> Path:
    """The checkpoint directory that a run or checkpoint path means; of a run, the best one, or the last if none was scored.

    Raises:
        CheckpointError: there is no such directory, or it holds no checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint")
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: a run or checkpoint is a directory; this is a file (`fcn-jax convert` makes a checkpoint of weights)"
        )
    if (path / "spec").is_dir() and (path / "model").is_dir():
        return path
    if (path / STEPS).is_dir():
        with _manager(path, read_only=True) as manager:
            steps = manager.all_steps()
            scored = [step for step in steps if manager.metrics(step)]
            step = manager.best_step() if scored else manager.latest_step()
        if step is not None:
            return path / STEPS / str(step)
        raise CheckpointError(f"{path}: this run has no checkpoint yet")
    raise CheckpointError(f"{path}: neither a run (it has no '{STEPS}' folder) nor a checkpoint (it has no 'model' and 'spec')")


def read_spec(directory: Path) -> Spec:
    """A checkpoint's own description. Raises `CheckpointError` if it is unreadable or of a newer format."""
    try:
        with _quiet(), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            table = checkpointer.restore((directory / "spec").absolute())
        if table["format"] != FORMAT:
            raise CheckpointError(f"{directory}: checkpoint format {table['format']}; this version of fcn-jax reads {FORMAT}")
        return Spec.from_dict(table)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{directory}: the checkpoint's 'spec' is unreadable or incomplete ({_first_line(error)})"
        ) from error


def read_arrays(directory: Path) -> dict[str, np.ndarray]:
    """A checkpoint's parameters and batch statistics by dotted name. Raises `CheckpointError` if they are unreadable."""
    item = (directory / "model").absolute()
    try:
        with _quiet(), ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(item).item_metadata.tree
            target = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_first_device()) for name, leaf in tree.items()}
            restored = checkpointer.restore(item, target)
    except Exception as error:  # Orbax and TensorStore raise bare ones on damaged files
        raise CheckpointError(
            f"{directory}: the checkpoint's 'model' is unreadable or incomplete ({_first_line(error)})"
        ) from error
    return {name: np.asarray(value) for name, value in restored.items()}


def load(path: str | Path) -> tuple[Segmenter, Spec]:
    """Build the model of a run or checkpoint and fill it, in eval mode.

    Raises:
        CheckpointError: not a checkpoint, incomplete, of a backbone alone, or not what its spec builds here.
    """
    directory = find(path)
    spec = read_spec(directory)
    if spec.model.head is None:
        raise CheckpointError(
            f"{directory}: holds backbone '{spec.model.backbone}' alone, which segments nothing; start a training from it with train --init"
        )
    model = nnx.eval_shape(lambda: build(spec.model, rngs=nnx.Rngs(0)))
    stored = read_arrays(directory)
    fill(model, stored, directory)
    model.eval()
    return model, spec


def fill(model: nnx.Module, stored: Mapping[str, Any], directory: Path) -> None:
    """Put arrays into a model that `nnx.eval_shape` built. Raises `CheckpointError` naming every array that does not fit."""
    targets = leaves(model)
    missing, surplus = sorted(targets.keys() - stored.keys()), sorted(stored.keys() - targets.keys())
    misshapen = [name for name in targets.keys() & stored.keys() if targets[name].get_value().shape != stored[name].shape]
    if missing or surplus or misshapen:
        raise CheckpointError(
            f"{directory}: does not fit the model that this installation builds: "
            f"missing {missing}, surplus {surplus}, misshapen {misshapen}"
        )
    for name, leaf in targets.items():
        leaf.set_value(jax.numpy.asarray(stored[name]))


class Checkpoints:
    """The checkpoints of one run: the last and the best by validation mIoU are kept."""

    def __init__(self, run: Path) -> None:
        """Open or make the run's `checkpoints` folder."""
        self._manager = _open_manager(run, read_only=False)

    def save(
        self, step: int, *, model: Mapping[str, Any], train: Any, data: Any, spec: Spec, metrics: Mapping[str, float] | None
    ) -> None:
        """Write in the background; a process killed meanwhile leaves the earlier checkpoints as they were."""
        if step in self._manager.all_steps():
            # The same step again, this time with a score: an interrupted run that had just been saved.
            self._manager.delete(step)
        args = ocp.args.Composite(
            model=ocp.args.StandardSave(dict(model)),
            train=ocp.args.StandardSave(train),
            data=ocp.args.JsonSave(data),
            spec=ocp.args.JsonSave(spec.to_dict()),
        )
        with _quiet():
            self._manager.save(step, args=args, metrics=dict(metrics) if metrics else None)

    def latest_step(self) -> int | None:
        """The last step saved, or None."""
        return self._manager.latest_step()

    def restore(self, step: int, *, model: Any, train: Any) -> tuple[Any, Any, Any]:
        """The items `model`, `train` and `data` of a step; `model` and `train` are trees of arrays or shapes, placed as those are.

        Raises:
            CheckpointError: the checkpoint is incomplete or of another model.
        """
        args = ocp.args.Composite(
            model=ocp.args.StandardRestore(model), train=ocp.args.StandardRestore(train), data=ocp.args.JsonRestore()
        )
        try:
            with _quiet():
                items = self._manager.restore(step, args=args)
        except Exception as error:  # as above
            raise CheckpointError(f"checkpoint {step} cannot be restored: {_first_line(error)}") from error
        return items["model"], items["train"], items["data"]

    def close(self) -> None:
        """Wait until everything is written."""
        with _quiet():
            self._manager.wait_until_finished()
            self._manager.close()


def _open_manager(run: Path, *, read_only: bool) -> ocp.CheckpointManager:
    def score(metrics: Any) -> float:
        return float(metrics[METRIC])

    keep = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(1),
            checkpoint_managers.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    with _quiet():
        # `best_fn` too: Orbax writes the metrics to disk only where it is given.
        options = ocp.CheckpointManagerOptions(preservation_policy=keep, best_fn=score, best_mode="max", read_only=read_only)
        return ocp.CheckpointManager((run / STEPS).absolute(), options=options)


@contextlib.contextmanager
def _manager(run: Path, *, read_only: bool) -> Iterator[ocp.CheckpointManager]:
    manager = _open_manager(run, read_only=read_only)
    try:
        yield manager
    finally:
        manager.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax and absl log every file; only what went wrong is for the user."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _first_line(error: BaseException) -> str:
    """An error's gist: TensorStore puts whole specifications into its messages."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line if len(line) <= 160 else f"{line[:160]}..."
