"""Compares a run that was killed and resumed with the undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from chaos.training import STEPS, STEPS_PER_EVALUATION, State, leftovers
from fcn_jax import checkpoint
from fcn_jax.checkpoint import files, messages
from fcn_jax.eval import stored

_MEASURED = frozenset(
    {
        "time",
        "seconds",
        "step_seconds",
        "images_per_second",
        "input_wait_seconds",
        "peak_memory_gib",
    }
)
"""Values of records that differ between equal runs."""


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Describe in which ways a finished run differs from the undisturbed one.

    Compared are the last checkpoint (parameters, optimizer, averages and position in the data), the
    records of all steps and evaluations, the best checkpoint and the best evaluation: all bit for
    bit. Leftovers are differences, too.
    """
    found = [f"left behind: {name}" for name in leftovers(run)]
    found += _record_differences(run, undisturbed)
    last, expected = (folder / files.STEPS / str(STEPS) for folder in (run, undisturbed))
    if not last.is_dir():
        return [*found, f"step {STEPS} has no checkpoint"]
    if fault := files.fault(last, files.RUN_ITEMS):
        return [*found, f"the last checkpoint is damaged: {fault}"]
    arrays, reference = _arrays(last), _arrays(expected)
    if arrays.keys() != reference.keys():
        found.append(f"other arrays: {sorted(arrays.keys() ^ reference.keys())}")
    found += [
        f"other values of {name}"
        for name in arrays.keys() & reference.keys()
        if arrays[name].tobytes() != reference[name].tobytes()
    ]
    if _json(last / "data") != _json(expected / "data"):
        found.append("another position in the data")
    if checkpoint.find(run).name != checkpoint.find(undisturbed).name:
        found.append(f"another best checkpoint: {checkpoint.find(run).name}")
    if _best(run) != _best(undisturbed):
        found.append(f"another best evaluation: {_best(run)}")
    return found


def _record_differences(run: Path, undisturbed: Path) -> list[str]:
    found = []
    for event, expected in (
        ("train", list(range(1, STEPS + 1))),
        ("val", list(range(STEPS_PER_EVALUATION, STEPS + 1, STEPS_PER_EVALUATION))),
    ):
        mine, others = (_records(folder, event) for folder in (run, undisturbed))
        numbers = [record["step"] for record in mine]
        if numbers != expected:
            twice = sorted({number for number in numbers if numbers.count(number) > 1})
            missing = sorted(set(expected) - set(numbers))
            found.append(f"'{event}' records: {twice} twice, {missing} missing")
        elif mine != others:
            found.append(f"other values in '{event}' records")
    return found


def _records(run: Path, event: str) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in _MEASURED}
        for record in State(run).records
        if record["event"] == event
    ]


def _arrays(directory: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint, of any number of devices and processes."""
    import jax
    import orbax.checkpoint as ocp

    found = {}
    with (
        messages.quiet(),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
    ):
        for item in ("model", "train", files.EMA):
            stored = checkpointer.metadata(directory / item).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
            tree = checkpointer.restore(
                directory / item, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def _json(item: Path) -> Any:
    return json.loads((item / "metadata").read_text())


def _best(run: Path) -> list[tuple[Any, ...]]:
    return [(table["step"], table["miou"], table["iou"]) for _, table in stored.read(run)]
