"""Extracts of training runs: what `benchmarks/results/runs/` keeps of a run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS
from fcn_jax import config, recipes
from fcn_jax.config import AUTO, PLUGIN_NAMES, same_plugins
from fcn_jax.plugins.registry import OWN_DISTRIBUTION
from fcn_jax.report.run import Run, read_runs
from fcn_jax.report.settings import flat
from fcn_jax.runtime.atomic import write_json
from fcn_jax.train.inputs import open_inputs

RUNS = RESULTS / "runs"

_ASIDE = (
    *("data.root", "data.num_workers", "train.seed", "train.log_every_steps"),
    *("train.eval_every_epochs", "train.checkpoint_every_steps", "train.num_visualizations"),
    *("eval.also", "eval.metrics", "eval.batch_size"),
    *("log.tensorboard", "log.histograms_every_steps", "log.wandb"),
)
"""Settings in which the runs of a mean may differ."""


def extract(
    folder: Path,
    *,
    note: str = "",
    base: str = "",
    every: int = 10,
    min_images: int | None = None,
) -> dict[str, Any]:
    """Return the extract of a run, ready for JSON.

    It has no path of the machine: of absolute paths in settings, only the last part is kept.

    Args:
        folder: run directory of `fcn-jax train`, or of `benchmarks.torch_training --workdir`.
        note: what settings do not tell, such as a subset of the data.
        base: name of the extract whose recipe this run varies.
        every: keep the training loss of every so many steps, and of the last one.
        min_images: also record which classes occur in at least so many training images. Needs the
            data.

    Raises:
        SystemExit: there is no evaluation.
        CheckpointError: it is not a run, or its settings cannot be read.
    """
    recipe = recipes.read_run(folder)
    (run,) = read_runs([folder])
    evaluations, trained = run.events("val"), run.events("train")
    if not evaluations:
        raise SystemExit(f"{folder}: the run has no evaluation yet, so there is nothing to keep")
    settings = _comparable(recipe)
    name, changes = _recipe_of(settings)
    found = {
        "note": note,
        "base": base,
        "framework": run.versions.get("framework", "fcn-jax"),
        "recipe": name,
        "changes": changes,
        "seed": recipe.train.seed,
        "python": run.versions.get("python"),
        "packages": {k: v for k, v in run.versions.get("packages", {}).items() if v},
        "devices": run.versions.get("devices", []),
        "steps": run.step,
        "epoch_steps": round(evaluations[-1]["step"] / evaluations[-1]["epoch"]),
        "seconds": round(_seconds(run), 1),
        "settings": settings,
        "val": [_scores(record) for record in evaluations],
        "train": [
            {"step": record["step"], "loss": _rounded(record["loss"])}
            for record in trained
            if record["step"] % every == 0 or record is trained[-1]
        ],
    }
    if min_images is not None:
        counts = _images_by_class(recipe)
        found["frequent"] = {
            "min_images": min_images,
            "classes": [name for name, count in counts.items() if count >= min_images],
        }
    return found


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by dotted names, without those in which runs of a mean may differ."""
    return {key: value for key, value in flat(settings).items() if key not in _ASIDE}


def keep(name: str, table: Mapping[str, Any]) -> Path:
    """Write an extract, and return its file."""
    path = RUNS / f"{name}.json"
    write_json(path, {"name": name, **table})
    return path


def kept() -> list[dict[str, Any]]:
    """Read all extracts, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(RUNS.glob("*.json"))]


def _recipe_of(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the shipped recipe for the dataset with the fewest changes, and the changes.

    Without such a recipe, the name is "", and the changes are those of the defaults.
    """
    found = []
    for name in recipes.names():
        base = _comparable(config.parse(recipes.read_recipe(name), name))
        if base["data"]["dataset"] == settings["data"]["dataset"]:
            changes = _changes(base, settings)
            found.append((len(changes), name, changes))
    if not found:
        return "", _changes(_comparable(config.Config()), settings)
    _, name, changes = min(found, key=lambda one: one[:2])
    return name, changes


def _changes(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    old, new = identity(base), identity(settings)
    return {
        key: new.get(key)
        for key in {**new, **old}
        if new.get(key) != old.get(key) and old.get(key) != AUTO
    }


def _comparable(recipe: config.Config) -> dict[str, Any]:
    """Return settings with one name for each plugin, and without paths of the machine."""
    table = _portable(same_plugins(recipe.model_dump(mode="json")))
    prefix = f"{OWN_DISTRIBUTION}:"
    table["loss"] = {key.removeprefix(prefix): value for key, value in table["loss"].items()}
    for section, key, _ in PLUGIN_NAMES:
        if table[section][key] is not None:
            table[section][key] = table[section][key].removeprefix(prefix)
    return table


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    is_path = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if is_path else value


def _seconds(run: Run) -> float:
    """Time of set-up, compilation, steps and evaluations in all parts of a resumed run."""
    total = sum(r["setup_seconds"] + r["compile_seconds"] for r in run.events("compile"))
    total += sum(record["seconds"] for record in run.events("val"))
    before = 0
    for record in run.events("train"):
        total += (record["step"] - before) * record["step_seconds"]
        before = record["step"]
    return total


def _scores(record: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {"step": record["step"], "epoch": _rounded(record["epoch"])}
    kept |= {key: _rounded(record[key]) for key in ("miou", "pixel_accuracy")}
    kept["iou"] = {name: _rounded(value) for name, value in record["iou"].items()}
    if also := record.get("also"):
        kept["also"] = {
            name: {key: _rounded(other[key]) for key in ("miou", "pixel_accuracy")}
            for name, other in also.items()
        }
    return kept


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _images_by_class(recipe: config.Config) -> dict[str, int]:
    """Numbers of training images in which each class occurs."""
    source = open_inputs(recipe).train
    names: Sequence[str] = source.classes.names
    counts = np.zeros(256, np.int64)
    for index in range(len(source)):
        counts[np.unique(source.decode(source[index]).mask)] += 1
    return dict(zip(names, counts.tolist(), strict=False))
