"""Score a checkpoint on a dataset."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from fcn_jax import checkpoint
from fcn_jax.config import Config, read_run
from fcn_jax.data import value_range as ranges
from fcn_jax.data.pipeline import eval_examples
from fcn_jax.data.splits import open_splits
from fcn_jax.data.value_range import Range
from fcn_jax.errors import CheckpointError, ConfigError, DataError, listing
from fcn_jax.eval.metrics import ConfusionMatrix, Scores
from fcn_jax.eval.predictor import Predictor, evaluate
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Classes


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a checkpoint on a split.

    Attributes:
        checkpoint: the directory that was read.
        dataset: registered name.
        split: name of the split.
        images: number of images in it; all count.
        classes: names and colors.
        scores: over all pixels of the split that are not void.
        notes: lines about what was assumed, and about what the scores do not show.
    """

    checkpoint: Path
    dataset: str
    split: str
    images: int
    classes: Classes
    scores: Scores
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; see `Scores.to_dict`."""
        where = {
            "checkpoint": str(self.checkpoint),
            "dataset": self.dataset,
            "split": self.split,
            "images": self.images,
        }
        return {**where, **self.scores.to_dict(self.classes), "notes": list(self.notes)}


def evaluate_checkpoint(
    path: str | Path,
    *,
    dataset: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    value_range: Range | None = None,
) -> Evaluation:
    """Score a run or checkpoint on a whole split, with whole images at their own size.

    Args:
        path: a run (its best checkpoint), one of its checkpoints, or a converted model.
        dataset: registered name; the run's own if not given.
        data: folder of the dataset; the run's own if not given.
        split: the run's validation split if not given.
        value_range: stored values of images of more than 8 bits that become 0 and 255; those of the
            training if not given.

    Raises:
        CheckpointError: not a checkpoint, or of other classes than the dataset.
        ConfigError: the path is of no run, and no dataset is named.
        DataError: as the dataset says, or the folder that the run recorded is not there.
    """
    directory = checkpoint.find(path)
    recipe = _recipe_of(directory)
    root = Path(data) if data else None
    notes: list[str] = []
    if recipe is not None:
        own = recipe.data
        if root is None and own.root and dataset in (None, own.dataset):
            root, notes = _recorded_root(own.root, directory)
        dataset, split = dataset or own.dataset, split or own.val_split
    if dataset is None:
        raise ConfigError(
            f"{path}: not a run's checkpoint, so name the dataset to score it on with --dataset NAME"
        )
    try:
        split = split or "val"
        opened = open_splits(
            registry.default().dataset(dataset),
            root,
            [split],
            value_range=value_range
            or ranges.from_json(checkpoint.read_spec(directory).value_range),
            damaged=recipe.data.damaged if recipe else "refuse",
            training=False,
        )
    except DataError as error:
        if notes:
            raise DataError(f"{error}; {'; '.join(notes)}") from error
        raise
    source = opened.sources[split]
    notes += opened.notes
    notes += _compare_classes(directory, source.classes, dataset)
    predictor = Predictor.from_checkpoint(directory)
    matrix = ConfusionMatrix(len(source.classes))
    for _ in evaluate(predictor, eval_examples(source), matrix):
        pass
    scores = matrix.scores()
    notes += scores.notes(source.classes)
    return Evaluation(directory, dataset, split, len(source), source.classes, scores, tuple(notes))


def run_config(directory: Path) -> Path | None:
    """The `config.json` of the run that a checkpoint lies in, or None where it lies in none."""
    folder = directory.absolute().parent
    path = folder.parent / "config.json"
    return path if folder.name == checkpoint.STEPS and path.exists() else None


def _recipe_of(directory: Path) -> Config | None:
    """The recipe of the run that a checkpoint lies in, or None where it lies in none."""
    path = run_config(directory)
    if path is None:
        return None
    return read_run(path.parent)


def _recorded_root(recorded: str, directory: Path) -> tuple[Path, list[str]]:
    """The folder of the dataset that a run recorded, and notes on how it was found.

    A relative one was given from the folder in which training started, which older runs do not
    record. It is looked for in the current folder, then where `runs/NAME`, the default, lies, then
    in the folders around the run from the nearest on. A note says which was read, unless the
    current folder is the only one that has it.
    """
    root = Path(recorded)
    run = directory.absolute().parent.parent
    if root.is_absolute():
        if not os.path.exists(root):
            raise DataError(
                f"{run}: was trained on {root}, which does not exist; pass --data DIR, the folder of the dataset"
            )
        return root, []
    bases = (Path.cwd(), run.parent.parent, *run.parents, *run.resolve().parents)
    found = {
        os.path.realpath(base / root): base
        for base in reversed(bases)
        if os.path.exists(base / root)
    }
    for base in bases:
        if base in found.values():
            if base == Path.cwd() and len(found) == 1:
                return root, []
            note = f"the run recorded its data as '{recorded}', a relative path; read from {base / root} (--data DIR names another)"
            return base / root, [note]
    raise DataError(
        f"{run}: was trained on '{recorded}', relative to the folder in which training started, and neither the current folder nor "
        "one above the run holds it; pass --data DIR, the folder of the dataset"
    )


def _compare_classes(directory: Path, classes: Classes, dataset: str) -> list[str]:
    """Notes on class names that differ between a checkpoint and a dataset.

    Converted weights have no names.

    Raises:
        CheckpointError: the two differ in the number of classes, or a name has another label.
    """
    spec = checkpoint.read_spec(directory)
    if spec.model.head is not None and spec.model.num_classes != len(classes):
        raise CheckpointError(
            f"{directory}: predicts {spec.model.num_classes} classes, but dataset '{dataset}' has {len(classes)}"
        )
    if spec.classes is None:
        return []
    ours, theirs = (
        [_folded(name) for name in names] for names in (spec.classes.names, classes.names)
    )
    moved = [
        f"'{spec.classes.names[label]}' is {label} in the checkpoint and {theirs.index(name)} in the dataset"
        for label, name in enumerate(ours)
        if name in theirs and theirs[label] != name
    ]
    if moved:
        raise CheckpointError(
            f"{directory}: numbers its classes differently than dataset '{dataset}': {listing(moved)}; put the dataset's classes into "
            "the order of the checkpoint"
        )
    renamed = [
        f"{label} is '{spec.classes.names[label]}' in the checkpoint and '{classes.names[label]}' in the dataset"
        for label in range(len(ours))
        if ours[label] != theirs[label]
    ]
    return (
        [
            f"{len(renamed)} of {len(ours)} classes have other names, check that they mean the same: {listing(renamed)}"
        ]
        if renamed
        else []
    )


def _folded(name: str) -> str:
    """A name without the differences in case and separators that mean nothing."""
    return "".join(letter for letter in name.casefold() if letter not in " _-")
