"""Scores of a model on a dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax import checkpoint
from fcn_jax.config import Config
from fcn_jax.data import value_range as ranges
from fcn_jax.data.pipeline import eval_examples
from fcn_jax.data.source import Source
from fcn_jax.data.splits import open_splits
from fcn_jax.data.value_range import Range
from fcn_jax.errors import CheckpointError, ConfigError, DataError, listing
from fcn_jax.eval import padding
from fcn_jax.eval.metrics import ConfusionMatrix, Scores
from fcn_jax.eval.predictor import Predictor
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Classes, Example
from fcn_jax.recipes import read_run
from fcn_jax.runtime.progress import Progress


def evaluate(
    predictor: Predictor, source: Source, matrix: ConfusionMatrix, *, workers: int = 0
) -> Generator[tuple[Example, np.ndarray], None, None]:
    """Segment every image of a source and count its pixels in `matrix`.

    Args:
        predictor: the model.
        source: images and their ground truth.
        matrix: of as many classes as the model.
        workers: processes that decode; 0 uses threads of this process.

    Returns:
        Generator of each example with its predicted mask u8[H,W], in order. Close it to stop early.
    """
    with contextlib.closing(eval_examples(source, num_workers=workers)) as examples:
        for example in examples:
            prediction = predictor(example.image)
            matrix.add(example.mask, prediction)
            yield example, prediction


def choose_multiple(source: Source, *, exact: bool = False) -> tuple[int, str]:
    """Decide whether a source's images are padded; see `fcn_jax.eval.padding.choose_multiple`."""
    with Progress("reading image sizes", len(source)) as progress:
        return padding.choose_multiple(
            (source[index].image for index in range(len(source))),
            exact=exact,
            progress=progress.update,
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a checkpoint on a split.

    Attributes:
        checkpoint: the directory that was read.
        dataset: registered name.
        split: name of the split.
        images: number of images in the split; all of them count.
        classes: names and colors.
        scores: over all pixels of the split that are not ignored.
        notes: lines about assumptions and about the limits of the scores.
        padded_to_multiple: the multiple in pixels to which images were padded; None if each ran at
            its own size.
        weights: "ema", averages of the weights, or "raw".
    """

    checkpoint: Path
    dataset: str
    split: str
    images: int
    classes: Classes
    scores: Scores
    notes: tuple[str, ...] = ()
    padded_to_multiple: int | None = None
    weights: str = "raw"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; see `Scores.to_dict`."""
        where = {
            "checkpoint": str(self.checkpoint),
            "weights": self.weights,
            "dataset": self.dataset,
            "split": self.split,
            "images": self.images,
            "padded_to_multiple": self.padded_to_multiple,
        }
        return {**where, **self.scores.to_dict(self.classes), "notes": list(self.notes)}

    def __str__(self) -> str:
        """A table for the terminal, then the notes."""
        which = " (ema)" if self.weights == "ema" else ""
        title = f"{self.checkpoint}{which} on {self.dataset} {self.split}, {self.images} images"
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([title, "", self.scores.table(self.classes), *notes])


def evaluate_checkpoint(
    path: str | Path,
    *,
    dataset: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    value_range: Range | None = None,
    exact_sizes: bool = False,
    weights: str | None = None,
) -> Evaluation:
    """Score a run or checkpoint on all images of a split, without crops.

    Args:
        path: a run (its best checkpoint), one of its checkpoints, or a converted model.
        dataset: registered name; the run's if None.
        data: folder of the dataset; the run's if None.
        split: the run's validation split if None.
        value_range: stored values that become 0 and 255 in images of more than 8 bits; those of
            the training if None.
        exact_sizes: run every image at its own size, however many sizes there are; see
            `fcn_jax.eval.padding`.
        weights: "ema" for the averages of the weights, or "raw"; the averages if there are any, if
            None.

    Raises:
        CheckpointError: the path is not a checkpoint, its classes differ from the dataset's, or it
            has no averages.
        ConfigError: the checkpoint is not a run's, and no dataset is named.
        DataError: the dataset cannot be read, or the folder that the run recorded does not exist.
    """
    directory = checkpoint.find(path)
    chosen = checkpoint.choose_weights(directory, weights)
    recipe = _recipe_of(directory)
    root = Path(data) if data else None
    notes: list[str] = []
    if recipe is not None:
        own = recipe.data
        if root is None and own.root and dataset in (None, own.dataset):
            root, notes = _recorded_root(own.root, directory)
        dataset, split = dataset or own.dataset, split or own.val_split
    if dataset is None:
        raise ConfigError(f"{path}: not a run's checkpoint; name its dataset with --dataset NAME")
    split = split or "val"
    recorded = ranges.from_json(checkpoint.read_spec(directory).value_range)
    try:
        opened = open_splits(
            registry.default().dataset(dataset),
            root,
            [split],
            value_range=value_range or recorded,
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
    multiple, note = choose_multiple(source, exact=exact_sizes)
    notes += [f"{note}; --exact-sizes compiles one for each size"] if note else []
    predictor = Predictor.from_checkpoint(directory, pad_to_multiple=multiple, weights=chosen)
    matrix = ConfusionMatrix(len(source.classes))
    for _ in evaluate(predictor, source, matrix):
        pass
    scores = matrix.scores()
    notes += scores.notes(source.classes)
    padded = multiple if multiple > 1 else None
    return Evaluation(
        directory, dataset, split, len(source), source.classes, scores, tuple(notes), padded, chosen
    )


def _recipe_of(directory: Path) -> Config | None:
    """The recipe of the run that holds a checkpoint; None if no run holds it."""
    folder = directory.absolute().parent
    in_run = folder.name == checkpoint.STEPS and (folder.parent / "config.json").exists()
    return read_run(folder.parent) if in_run else None


def _recorded_root(recorded: str, directory: Path) -> tuple[Path, list[str]]:
    """The folder of the dataset that a run recorded, and notes on how it was found.

    A relative path was given from the folder in which training started, which older runs do not
    record. It is looked up in the current folder, then in the folder that holds `runs/NAME`, the
    default, then in the folders above the run, nearest first. A note says which one was read,
    unless the current folder is the only one that has it.
    """
    root = Path(recorded)
    run = directory.absolute().parent.parent
    if root.is_absolute():
        if not os.path.exists(root):
            raise DataError(
                f"{run}: was trained on {root}, which does not exist; pass --data DIR, the folder "
                "of the dataset"
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
            note = (
                f"the run recorded its data as '{recorded}', a relative path; read from "
                f"{base / root} (--data DIR names another)"
            )
            return base / root, [note]
    raise DataError(
        f"{run}: was trained on '{recorded}', relative to the folder in which training started; "
        "neither the current folder nor one above the run has it; pass --data DIR, the folder of "
        "the dataset"
    )


def _compare_classes(directory: Path, classes: Classes, dataset: str) -> list[str]:
    """Notes on class names that differ between a checkpoint and a dataset.

    Converted weights have no names.

    Raises:
        CheckpointError: the numbers of classes differ, or a name has different labels.
    """
    spec = checkpoint.read_spec(directory)
    if spec.model.head is not None and spec.model.num_labels != len(classes):
        raise CheckpointError(
            f"{directory}: predicts {spec.model.num_labels} classes, but dataset '{dataset}' has "
            f"{len(classes)}"
        )
    if spec.classes is None:
        return []
    here, there = spec.classes.names, classes.names
    ours, theirs = ([_folded(name) for name in names] for names in (here, there))
    moved = [
        f"'{here[label]}' is {label} in the checkpoint and {theirs.index(name)} in the dataset"
        for label, name in enumerate(ours)
        if name in theirs and theirs[label] != name
    ]
    if moved:
        raise CheckpointError(
            f"{directory}: numbers its classes differently than dataset '{dataset}': "
            f"{listing(moved)}; put the dataset's classes into the order of the checkpoint"
        )
    renamed = [
        f"{label} is '{here[label]}' in the checkpoint and '{there[label]}' in the dataset"
        for label in range(len(ours))
        if ours[label] != theirs[label]
    ]
    if not renamed:
        return []
    return [
        f"{len(renamed)} of {len(ours)} classes have different names, check that they mean the "
        f"same: {listing(renamed)}"
    ]


def _folded(name: str) -> str:
    """A class name without case and separators."""
    return "".join(letter for letter in name.casefold() if letter not in " _-")
