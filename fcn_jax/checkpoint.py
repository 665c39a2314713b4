"""Checkpoints on disk, by Orbax.

A checkpoint is a directory with the items `model` (parameters and batch statistics by dotted name) and `spec` (what to build, for which
classes). Those of a training run also hold `train` (optimizer and step) and `data` (the input pipeline's position). Each appears whole
or not at all. `files.json` lists its files with their checksums, so that later damage is found; `score.json` is added by the evaluation.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from fcn_jax import atomic, registry
from fcn_jax.api import Classes
from fcn_jax.errors import CheckpointError, ConfigError, WriteError, listing
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import ModelSpec, Segmenter, build

_log = logging.getLogger(__name__)

FORMAT = 1
METRIC = "miou"
STEPS = "checkpoints"
"""The folder of a run that holds its checkpoints."""
_FILES = "files.json"
_SCORE = "score.json"
_LEFTOVER = re.compile(r"\d+\.(orbax-checkpoint-tmp.*|deleted)")
"""Folders of a save or a deletion that was cut short."""


_PARTS = {"backbone": "backbones", "head": "heads", "aux_head": "heads"}
"""The parts of a model that plugins make, with the kind of each."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a checkpoint says about itself.

    Attributes:
        model: what to build.
        classes: names and colors, or None for converted weights, which come without.
        plugins: name, distribution and version of the backbone and heads.
        weights: record of the weights that it started from, or None.
        value_range: how images of more than 8 bits were scaled, as `fcn_jax.data.value_range.to_json` gives it; None if there
            were none.
    """

    model: ModelSpec
    classes: Classes | None = None
    plugins: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, Any] | None = None
    value_range: Any = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Spec:
        """The inverse of `to_dict`; a plugin's name means that of the recorded distribution, whoever else has one of that name."""
        classes = table["classes"]
        if classes is not None:
            classes = Classes(tuple(classes["names"]), tuple((r, g, b) for r, g, b in classes["palette"]))
        model, plugins = dict(table["model"]), registry.default()
        for part, kind in _PARTS.items():
            if model.get(part) is not None and part in table["plugins"]:
                model[part] = plugins.own_name(kind, model[part], table["plugins"][part]["distribution"], strict=True)
        return cls(ModelSpec(**model), classes, table["plugins"], table["weights"], table.get("value_range"))


def describe(
    model: ModelSpec, classes: Classes | None = None, weights: Mapping[str, Any] | None = None, value_range: Any = None
) -> Spec:
    """The spec of a model, with the plugins that it is built from."""
    plugins = registry.default()
    names = {part: getattr(model, part) for part in _PARTS}
    records = {part: plugins.record(_PARTS[part], name) for part, name in names.items() if name is not None}
    return Spec(model, classes, records, weights, value_range)


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
        _list_files(temporary / "whole")
        if directory.exists():
            directory.rmdir()
        os.replace(temporary / "whole", directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find(path: str | Path) -> Path:
    """The checkpoint directory that a run or checkpoint path means; of a run, the best one, or the last if none was scored.

    A damaged checkpoint of a run is passed over for the next best. A warning says so.

    Raises:
        CheckpointError: there is no such directory, it holds no checkpoint, or what it holds is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint")
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: a run or checkpoint is a directory; this is a file (`fcn-jax convert` makes a checkpoint of weights)"
        )
    if (path / STEPS).is_dir():
        return _best(path)
    if any((path / part).exists() for part in (_FILES, "spec", "model")):
        if fault := _fault(path, ("spec", "model")):
            raise CheckpointError(f"{path}: the checkpoint is damaged: {fault}{_whole_siblings(path)}")
        return path
    if path.name == STEPS and _steps(path):
        return _best(path.parent)
    raise CheckpointError(f"{path}: neither a run (it has no '{STEPS}' folder) nor a checkpoint (it has no 'model' and 'spec')")


def _best(run: Path) -> Path:
    """The whole checkpoint of a run with the best score, or the last one if none has a score."""
    steps = _steps(run / STEPS)
    if not steps:
        raise CheckpointError(f"{run}: this run has no checkpoint yet")
    ranked = [
        run / STEPS / str(step) for step in sorted(steps, key=lambda step: (_rank(run / STEPS / str(step)), step), reverse=True)
    ]
    faults: list[str] = []
    for directory in ranked:
        fault = _fault(directory, ("spec", "model"))
        if fault is None:
            if faults:
                _log.warning("%s; using %s", "; ".join(faults), _with_score(directory))
            return directory
        faults.append(f"{_with_score(directory)} is damaged ({fault})")
    raise CheckpointError(
        f"{run}: no checkpoint of this run is whole: {listing(faults)}; take them from a backup, or train again"
    )


def _with_score(directory: Path) -> str:
    score = _rank(directory)
    return f"{directory} (mIoU {score:.4f})" if score >= 0 else str(directory)


def _whole_siblings(directory: Path) -> str:
    """Which other checkpoints of the same run can be used, to end a message with."""
    folder = directory.absolute().parent
    others = [folder / str(step) for step in _steps(folder)] if folder.name == STEPS else []
    whole = [str(other) for other in others if other != directory.absolute() and _fault(other, ("spec", "model")) is None]
    return f"; whole is {listing(whole)}" if whole else ""


def _steps(folder: Path) -> list[int]:
    """The steps whose checkpoints are complete, ascending: a checkpoint gets its name when all of it is written."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isascii() and path.name.isdecimal() and path.is_dir())


def _rank(directory: Path) -> float:
    """A checkpoint's mIoU, or -1 if it was not evaluated or the evaluation counted no pixel."""
    value = (_evaluation(directory) or {METRIC: None})[METRIC]
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else -1.0


def _evaluation(directory: Path) -> Mapping[str, Any] | None:
    """What the evaluation of a checkpoint has left in it, or None."""
    # Runs of the first releases have Orbax's own file.
    for path in (directory / _SCORE, directory / "metrics" / "metrics"):
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(table, dict) and METRIC in table:
            return table
    return None


def _list_files(directory: Path) -> None:
    """Write the list of a checkpoint's files: name -> [bytes, CRC-32]."""
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in _NOT_LISTED:
            files[path.relative_to(directory).as_posix()] = [path.stat().st_size, _checksum(path)]
    atomic.write_json(directory / _FILES, files)


_NOT_LISTED = frozenset({_FILES, _SCORE, "commit_success.txt", "_CHECKPOINT_METADATA"})
"""Files that are written after the list, or that say nothing about the contents."""


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _fault(directory: Path, items: Iterable[str]) -> str | None:
    """What is wrong with the files of a checkpoint's items, or None. Checkpoints of the first releases have no list to compare with."""
    items = tuple(items)
    missing = [item for item in items if not (directory / item).is_dir()]
    if missing:
        return f"{listing(missing)} is missing"
    try:
        files = json.loads((directory / _FILES).read_text(encoding="utf-8"))
        for name, (size, checksum) in files.items():
            if name.split("/")[0] not in items:
                continue
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _checksum(path) != checksum:
                return f"{name} was changed after it was written"
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, TypeError, AttributeError):
        return f"{_FILES} is unreadable"
    return None


def read_spec(directory: Path) -> Spec:
    """A checkpoint's own description. Raises `CheckpointError` if it is unreadable or of a newer format."""
    try:
        with _quiet(), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            table = checkpointer.restore((directory / "spec").absolute())
        if not isinstance(table, dict):
            raise ValueError("not a JSON object")
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
        CheckpointError: not a checkpoint, incomplete, of a backbone alone, of a plugin that is not installed, or not what its spec builds
            here.
    """
    directory = find(path)
    spec = read_spec(directory)
    if spec.model.head is None:
        raise CheckpointError(
            f"{directory}: holds backbone '{spec.model.backbone}' alone, which segments nothing; start a training from it with train --init"
        )
    _require_plugins(spec, directory)
    model = nnx.eval_shape(lambda: build(spec.model, rngs=nnx.Rngs(0)))
    stored = read_arrays(directory)
    fill(model, stored, directory)
    model.eval()
    return model, spec


def _require_plugins(spec: Spec, directory: Path) -> None:
    for part, kind in _PARTS.items():
        record = spec.plugins.get(part)
        if record is None or record["distribution"] == "unknown":
            continue
        try:
            registry.default().find(kind, f"{record['distribution']}:{record['name']}")
        except ConfigError as error:
            owner = f"{record['distribution']} {record['version']}"
            raise CheckpointError(
                f"{directory}: its {part.replace('_', ' ')} '{record['name']}' is of {owner}, which is needed to read it: {error}"
            ) from error


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
        self._folder = (run / STEPS).absolute()
        self._writing: int | None = None
        self._unwritten: dict[int, float] = {}
        self._first_process = jax.process_index() == 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"{self._folder}: cannot be made ({error.strerror or error})") from error
        self._remove_leftovers()
        options = ocp.options.AsyncOptions(post_finalization_callback=self._list_files_of_save)
        items = {"model": ocp.StandardCheckpointHandler(), "train": ocp.StandardCheckpointHandler()}
        json_items = {"data": ocp.JsonCheckpointHandler(), "spec": ocp.JsonCheckpointHandler()}
        # Orbax logs a failed save from several threads, with a traceback in each; the error is raised to the caller all the same.
        self._silence = contextlib.ExitStack()
        self._silence.enter_context(_quiet(logging.CRITICAL + 1))
        self._silence.enter_context(_quiet_threads())
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**items, **json_items), async_options=options)

    def save(self, step: int, *, model: Mapping[str, Any], train: Any, data: Any, spec: Spec) -> None:
        """Write in the background; a process killed meanwhile leaves the earlier checkpoints as they were.

        Raises:
            CheckpointError: this checkpoint, or the one before, which was still being written, cannot be written.
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
        return _evaluation(self._folder / str(step)) is not None

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
        return max(_steps(self._folder), default=None)

    def restore(self, *, model: Any, train: Any) -> Restored | None:
        """The newest checkpoint that is whole, or None where the run has none; `model` and `train` are trees of arrays or shapes.

        Newer ones that are damaged are set aside as `STEP.damaged`.

        Raises:
            CheckpointError: there are checkpoints, and none can be restored.
        """
        args = ocp.args.Composite(
            model=ocp.args.StandardRestore(model), train=ocp.args.StandardRestore(train), data=ocp.args.JsonRestore()
        )
        skipped: dict[int, str] = {}
        for step in reversed(_steps(self._folder)):
            directory = self._folder / str(step)
            fault = _fault(directory, ("model", "train", "data", "spec"))
            if fault is None:
                try:
                    items = self._checkpointer.restore(directory, args=args)
                except Exception as error:  # as above
                    fault = _first_line(error)
                else:
                    for other in skipped:
                        self._set_aside(self._folder / str(other))
                    faults = tuple(f"checkpoint {other} is damaged ({fault})" for other, fault in skipped.items())
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
        _silenced.append(self._silence.pop_all())
        atexit.register(self._remove_leftovers)
        return CheckpointError(f"{directory}: the checkpoint cannot be written ({_reason(error)})")

    def _list_files_of_save(self) -> None:
        """Runs in Orbax's thread, when all items are written and the folder still has its temporary name."""
        for directory in self._folder.glob(f"{self._writing}.orbax-checkpoint-tmp*"):
            _list_files(directory)

    def _settle(self) -> None:
        """Write the scores of complete checkpoints, and delete those that are not to be kept."""
        for step in [step for step in self._unwritten if (self._folder / str(step)).is_dir()]:
            miou = self._unwritten.pop(step)
            if self._first_process:
                atomic.write_json(self._folder / str(step) / _SCORE, {METRIC: miou})
        if not self._first_process:
            return
        steps = _steps(self._folder)
        scored = [step for step in steps if _rank(self._folder / str(step)) >= 0]
        best = max(scored, key=lambda step: (_rank(self._folder / str(step)), step), default=None)
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
            while found := [path for path in self._folder.iterdir() if _LEFTOVER.fullmatch(path.name)]:
                for path in found:
                    shutil.rmtree(path, ignore_errors=True)
                if time.monotonic() > until:
                    break
                time.sleep(0.1)


def latest_spec(run: Path) -> tuple[int, Spec] | None:
    """Step and description of a run's newest checkpoint that is whole, or None if it has none."""
    for step in reversed(_steps(run / STEPS)):
        directory = run / STEPS / str(step)
        if _fault(directory, ("model", "train", "data", "spec")) is None:
            with contextlib.suppress(CheckpointError):
                return step, read_spec(directory)
    return None


def is_evaluated(run: Path, step: int) -> bool:
    """Whether the checkpoint of a step has a score."""
    return _evaluation(run / STEPS / str(step)) is not None


_silenced: list[contextlib.ExitStack] = []
"""After a failed save, its threads may go on reporting until the process ends: what was silenced stays so."""


@contextlib.contextmanager
def _quiet(level: int = logging.ERROR) -> Iterator[None]:
    """Orbax and absl log every file; only what went wrong is for the user."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, earlier in zip(loggers, before, strict=True):
            logger.setLevel(earlier)


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """After a failed save, TensorStore's threads report to an event loop that is closed by then; Python would print that."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before


def _first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _reason(error: BaseException) -> str:
    """Why a save failed."""
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error):
        return "no space left on the disk"
    if (isinstance(error, OSError) and error.errno == errno.EDQUOT) or "Disk quota exceeded" in str(error):
        return "the disk quota is used up"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    """An error's gist: TensorStore puts whole specifications, and Python objects, into its messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    line = (
        re.split(r"\s*[\[(]?<(?:bound method|function|class|object|[\w.]+ object at)", line)[0].rstrip(" :,;=")
        or type(error).__name__
    )
    return line if len(line) <= 160 else f"{line[:160]}..."
