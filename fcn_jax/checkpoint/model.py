"""Write, find and load checkpoints of a model."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from fcn_jax.checkpoint import files, local_copy, messages, place, portable, remote
from fcn_jax.checkpoint.spec import Spec, read_spec, require_plugins
from fcn_jax.errors import CheckpointError, ConfigError, listing
from fcn_jax.models.build import build
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.runtime import atomic

_log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nnx.Module)


def arrays(module: nnx.Module) -> dict[str, Any]:
    """Return a module's parameters and batch statistics by dotted name."""
    return {name: leaf[...] for name, leaf in leaves(module).items()}


def require_empty(directory: str | Path) -> Path:
    """Return the absolute path of a directory to write.

    Raises:
        CheckpointError: the path is a file or a directory that is not empty.
    """
    path = Path(directory).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{directory}: exists and is not empty; name another directory")
    return path


def save_model(
    directory: str | Path,
    spec: Spec,
    tensors: Mapping[str, Any],
    evidence: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint of a model, without optimizer state.

    Args:
        directory: missing or empty.
        spec: describes the model.
        tensors: its parameters and batch statistics by dotted name.
        evidence: the report of `fcn-jax verify` on it, to be stored as `verify.json`.

    Raises:
        CheckpointError: the directory exists and is not empty.
    """
    directory = require_empty(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        # Compressed arrays stay in memory until they are on disk, so at most twice the largest one
        # is compressed at a time.
        at_a_time = 2e-9 * max(1, *(array.nbytes for array in tensors.values()))
        model = ocp.StandardCheckpointHandler(save_concurrent_gb=at_a_time)
        with (
            messages.quiet(),
            ocp.Checkpointer(
                ocp.CompositeCheckpointHandler(model=model, spec=ocp.JsonCheckpointHandler())
            ) as checkpointer,
        ):
            args = ocp.args.Composite(
                model=ocp.args.StandardSave(dict(tensors)), spec=ocp.args.JsonSave(spec.to_dict())
            )
            checkpointer.save(temporary / "complete", args=args)
        if evidence is not None:
            atomic.write_json(temporary / "complete" / files.EVIDENCE, evidence)
        files.list_files(temporary / "complete")
        if directory.exists():
            directory.rmdir()
        os.replace(temporary / "complete", directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find(path: str | Path) -> Path:
    """The checkpoint directory of a run or checkpoint: a run's best, or the last if none is scored.

    A damaged checkpoint of a run is skipped with a warning, and the next best is used. A portable
    directory (`fcn_jax.checkpoint.portable`) is a checkpoint, too, and the id of a model on the hub
    (`fcn_jax.checkpoint.remote`) is that of its download. One in an object store is copied: to the
    run directory whose recipe names the store, or to the cache.

    Raises:
        CheckpointError: there is no such directory, it holds no checkpoint, or all are damaged; or
            the model cannot be downloaded.
        ConfigError: the path is in an object store that cannot be read here.
        WriteError: the copy cannot be written.
    """
    if model := remote.parse(path):
        return _portable(remote.fetch(model), str(model))
    path = place.place(path)
    if place.is_remote(path):
        return local_copy.of(_found(path))
    if store := local_copy.store_of(path):
        directory = _found(store)
        return local_copy.of(directory, path) if place.is_remote(store) else directory
    return _found(path)


def _found(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint")
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: a run or checkpoint is a directory; this is a file (`fcn-jax convert` makes "
            "a checkpoint from weights)"
        )
    if (path / files.STEPS).is_dir():
        return _best(path)
    if any((path / part).exists() for part in (files.FILES, "spec", "model")):
        if fault := files.fault(path):
            raise CheckpointError(
                f"{path}: the checkpoint is damaged: {fault}{_undamaged_siblings(path)}"
            )
        return path
    if path.name == files.STEPS and files.steps(path):
        return _best(path.parent)
    if (path / portable.CONFIG).is_file():
        return _portable(path, str(path))
    raise CheckpointError(
        f"{path}: neither a run (it has no '{files.STEPS}' folder) nor a checkpoint (it has no "
        f"'model' and 'spec', and no {portable.CONFIG})"
    )


def _portable(directory: Path, name: str) -> Path:
    """Check a portable directory and return it. Raises `CheckpointError`."""
    if not portable.is_portable(directory):
        table = portable.config_of(directory)
        kinds = (table.get("library_name"), *(table.get("architectures") or ()))
        what = table.get("architecture") or ", ".join(map(str, filter(None, kinds))) or "unknown"
        raise CheckpointError(
            f"{name}: its {portable.CONFIG} is of another library (architecture: {what}); fcn-jax "
            f"convert {name} --model NAME imports the weights of a registered model or backbone "
            "(fcn-jax plugins list)"
        )
    if fault := portable.fault(directory):
        raise CheckpointError(f"{name}: the model is damaged: {fault}")
    return directory


def _best(run: Path) -> Path:
    """The undamaged checkpoint of a run with the best score, or the last if none has a score."""
    ranked = files.ranked(run / files.STEPS)
    if not ranked:
        raise CheckpointError(f"{run}: this run has no checkpoint yet")
    faults: list[str] = []
    for directory in ranked:
        fault = files.fault(directory)
        if fault is None:
            if faults:
                _log.warning("%s; using %s", "; ".join(faults), _with_score(directory))
            return directory
        faults.append(f"{_with_score(directory)} is damaged ({fault})")
    raise CheckpointError(
        f"{run}: all checkpoints of this run are damaged: {listing(faults)}; restore them from a "
        "backup, or train again"
    )


def _with_score(directory: Path) -> str:
    score = files.rank(directory)
    return f"{directory} (mIoU {score:.4f})" if score >= 0 else str(directory)


def _undamaged_siblings(directory: Path) -> str:
    """The undamaged checkpoints of the same run, to append to a message."""
    directory = place.absolute(directory)
    folder = directory.parent
    if folder.name != files.STEPS:
        return ""
    others = [folder / str(step) for step in files.steps(folder)]
    undamaged = [str(path) for path in others if path != directory and files.fault(path) is None]
    return f"; undamaged: {listing(undamaged)}" if undamaged else ""


def choose_weights(directory: Path, weights: str | None = None) -> str:
    """Return which weights of a checkpoint are used: "ema", the averages, or "raw".

    Args:
        directory: the checkpoint.
        weights: "ema" or "raw"; None for the averages if there are any.

    Raises:
        CheckpointError: there are no averages.
        ConfigError: `weights` is neither.
    """
    if weights not in (None, "ema", "raw"):
        raise ConfigError(f"weights is {weights!r}; expected 'ema' or 'raw'")
    has_average = (directory / files.EMA).is_dir()
    if weights == "ema" and not has_average:
        raise CheckpointError(
            f"{directory}: holds no averaged weights (ema), because it was made without "
            "optim.ema_decay; choose the raw ones"
        )
    return weights or ("ema" if has_average else "raw")


def read_arrays(directory: Path, weights: str | None = None) -> dict[str, np.ndarray]:
    """A checkpoint's parameters and batch statistics by dotted name.

    Args:
        directory: the checkpoint.
        weights: see `choose_weights`. Arrays without an average, such as counts, are the raw ones.

    Raises:
        CheckpointError: they are unreadable, or there are no averages.
    """
    chosen = choose_weights(directory, weights)
    arrays = _read_item(directory, "model")
    return arrays if chosen == "raw" else {**arrays, **_read_item(directory, files.EMA)}


def _read_item(directory: Path, name: str) -> dict[str, np.ndarray]:
    if portable.is_portable(directory):
        return portable.read_tensors(directory)
    item = place.absolute(directory / name)
    options, own = ocp.options.MultiprocessingOptions(), jax.process_index()
    if jax.process_count() > 1:  # Each process reads for itself.
        options = ocp.options.MultiprocessingOptions(own, {own}, f"process{own}")
    try:
        with (
            messages.quiet(),
            ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer,
        ):
            tree = checkpointer.metadata(item).item_metadata.tree
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            target = {
                path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
                for path, leaf in tree.items()
            }
            restored = checkpointer.restore(item, target)
    except Exception as error:  # Orbax and TensorStore raise many types on damaged files
        raise CheckpointError(
            f"{directory}: the checkpoint's '{name}' is unreadable or incomplete "
            f"({messages.first_line(error)})"
        ) from error
    return {path: np.asarray(value) for path, value in restored.items()}


def load_model(path: str | Path, weights: str | None = None) -> tuple[Segmenter, Spec]:
    """Build the model of a run or checkpoint in eval mode and load its arrays.

    `weights` chooses among raw and averaged ones, see `choose_weights`.

    Raises:
        CheckpointError: the path is not a checkpoint, the checkpoint is incomplete or contains
            only a backbone, it requires a plugin that is not installed, or its arrays do not fit
            the model that is built from its spec.
    """
    directory = find(path)
    spec = read_spec(directory)
    if spec.model.head is None:
        raise CheckpointError(
            f"{directory}: holds backbone '{spec.model.backbone}' alone, which segments nothing; "
            "start a training from it with train --weights"
        )
    require_plugins(spec, directory)
    model = load_module(directory, lambda: build(spec.model, rngs=nnx.Rngs(0)), weights)
    model.eval()
    return model, spec


def load_module(directory: Path, build: Callable[[], Module], weights: str | None = None) -> Module:
    """Build a module without initial values and fill it with a checkpoint's arrays.

    `weights` chooses among raw and averaged ones, see `choose_weights`.

    Raises:
        CheckpointError: arrays are unreadable or do not fit the module. The message names those
            that do not fit.
    """
    module = nnx.eval_shape(build)
    stored = read_arrays(directory, weights)
    targets = leaves(module)
    missing = sorted(targets.keys() - stored.keys())
    surplus = sorted(stored.keys() - targets.keys())
    misshapen = [
        name
        for name in targets.keys() & stored.keys()
        if targets[name].get_value().shape != stored[name].shape
    ]
    if missing or surplus or misshapen:
        raise CheckpointError(
            f"{directory}: does not fit the model that this installation builds: "
            f"missing {missing}, surplus {surplus}, misshapen {misshapen}"
        )
    for name, leaf in targets.items():
        leaf.set_value(jax.numpy.asarray(stored[name]))
    return module
