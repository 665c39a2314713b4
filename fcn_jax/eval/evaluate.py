"""Scores of a model on a dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fcn_jax import checkpoint
from fcn_jax.config import Config, EvalConfig
from fcn_jax.data import value_range as ranges
from fcn_jax.data.labels.remap import Remap
from fcn_jax.data.pipeline import eval_examples
from fcn_jax.data.source import Source
from fcn_jax.data.splits import open_splits
from fcn_jax.data.value_range import Range
from fcn_jax.errors import CheckpointError, ConfigError, DataError, listing
from fcn_jax.eval import padding
from fcn_jax.eval.evaluation import Evaluation
from fcn_jax.eval.meter import Meter, check_metrics
from fcn_jax.eval.predictor import Predictor
from fcn_jax.eval.protocols import Protocol, choose, make
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Classes, Example
from fcn_jax.recipes import read_run
from fcn_jax.runtime import distributed
from fcn_jax.runtime.progress import Progress


def score_each(
    predictor: Predictor, source: Source, meter: Meter, *, workers: int = 0
) -> Generator[tuple[Example, np.ndarray], None, None]:
    """Segment the images of a source by the predictor's protocol, and count their pixels.

    The next images are decoded while one is computed. Of several processes, each takes its share of
    the images; see `share`.

    Args:
        predictor: the model.
        source: images and their ground truth.
        meter: counts, of as many classes as the model.
        workers: processes that decode; 0 uses threads of this process.

    Returns:
        Generator of each example that the protocol scores with its predicted mask, as
        `Predictor` returns it, in order. Close it to stop early.
    """
    images = share(source, predictor.protocol)
    with contextlib.closing(eval_examples(source, num_workers=workers, images=images)) as found:
        examples = predictor.protocol.examples(found)
        pairs = ((example, example.image) for example in examples)
        for example, prediction in predictor.stream(pairs, confidence=meter.needs_confidence):
            meter.add(example.mask, *prediction)
            yield example, prediction.mask


def share(source: Source, protocol: Protocol) -> slice:
    """Return the images that this process scores: neighbors, as many as in other processes.

    The processes compute without waiting for one another, so their numbers of images may differ by
    one. A protocol that depends on several images together is computed by each process.
    """
    count = distributed.count() if protocol.by_image else 1
    index = distributed.index() if protocol.by_image else 0
    return slice(len(source) * index // count, len(source) * (index + 1) // count)


def add_up(meter: Meter, images: int, protocol: Protocol, *, stopped: bool = False) -> int | None:
    """Add up what the processes have counted, in all of them.

    Args:
        meter: counts of this process, which become those of all.
        images: number of images that this process has scored.
        protocol: of the evaluation.
        stopped: the evaluation was not completed here.

    Returns:
        The number of images, or None if a process was stopped.
    """
    numbers = np.array([images, stopped], np.int64)
    if distributed.count() > 1:
        distributed.add_up([*(meter.counts() if protocol.by_image else []), numbers])
    total, stops = numbers.tolist()
    return None if stops else total if protocol.by_image else images


def choose_multiple(source: Source, protocol: Protocol, *, exact: bool = False) -> tuple[int, str]:
    """Decide whether a source's images are padded; see `fcn_jax.eval.padding.choose_multiple`."""
    if not protocol.many_sizes:
        return 1, ""
    with Progress("reading image sizes", len(source)) as progress:
        return padding.choose_multiple(
            (source[index].image for index in range(len(source))),
            exact=exact,
            progress=progress.update,
        )


def evaluate(
    model: Segmenter | Predictor,
    source: Source,
    *,
    protocol: Protocol | str | None = None,
    metrics: Sequence[str] = (),
    batch_size: int | None = None,
    exact_sizes: bool = False,
    workers: int = 0,
    each: Callable[[Example, np.ndarray], None] | None = None,
) -> Evaluation:
    """Score a model on a source. Several processes share the images, and all return all scores.

    Args:
        model: a model, or a predictor; a predictor's own protocol is used.
        source: images and their ground truth, such as
            `fcn_jax.plugins.registry.default().dataset("voc2012").open(root, "val")`.
        protocol: see `fcn_jax.eval.protocols`, or the name of one; "native" if None.
        metrics: metrics in addition to those of the confusion matrix: "boundary_iou", "ece".
        batch_size: see `Predictor`.
        exact_sizes: run every image at its own size; see `fcn_jax.eval.padding`.
        workers: processes that decode; 0 uses threads of this process.
        each: called with each example that this process scores and its predicted mask u8[H,W].

    Raises:
        ConfigError: a protocol or metric is unknown, the model has another number of classes than
            the source, or a predictor comes with options of its own.
        DataError: an image cannot be decoded, or the protocol leaves out all images.
    """
    notes: list[str] = []
    if isinstance(model, Predictor):
        if protocol is not None or batch_size is not None or exact_sizes:
            raise ConfigError(
                "a Predictor has its own protocol, batch_size and sizes; pass them to Predictor"
            )
        predictor = model
    else:
        chosen = protocol if isinstance(protocol, Protocol) else make(protocol)
        multiple, note = choose_multiple(source, chosen, exact=exact_sizes)
        notes += [f"{note}; exact_sizes=True compiles one for each size"] if note else []
        predictor = Predictor(
            model,
            protocol=chosen,
            pad_to_multiple=multiple,
            batch_size=batch_size,
            devices=jax.local_devices(),
        )
    if predictor.num_classes != len(source.classes):
        raise ConfigError(
            f"the model predicts {predictor.num_classes} classes, but the source has "
            f"{len(source.classes)}"
        )
    meter = Meter(len(source.classes), metrics, predictor.task)
    images = 0
    for example, mask in score_each(predictor, source, meter, workers=workers):
        images += 1
        if each is not None:
            each(example, mask)
    images = add_up(meter, images, predictor.protocol) or 0
    require_images(images, len(source), predictor.protocol)
    scores = meter.scores()
    return Evaluation(
        checkpoint=None,
        dataset=None,
        split=None,
        images=images,
        images_skipped=len(source) - images,
        classes=source.classes,
        scores=scores,
        protocol=predictor.protocol,
        notes=(*notes, *scores.notes(source.classes)),
        padded_to_multiple=predictor.pad_to_multiple if predictor.pad_to_multiple > 1 else None,
    )


def require_images(scored: int, total: int, protocol: Protocol) -> None:
    """Raise `DataError` if a protocol left out all images."""
    if not scored:
        raise DataError(
            f"protocol {protocol} leaves out all {total} images: they are smaller than the crop, "
            "or do not fill a batch; drop_last = 1 keeps images that fill none, and protocol "
            "native scores all"
        )


def evaluate_checkpoint(
    path: str | Path,
    *,
    dataset: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    value_range: Range | None = None,
    exact_sizes: bool = False,
    weights: str | None = None,
    protocol: Protocol | str | None = None,
    settings: Mapping[str, Any] | None = None,
    metrics: Sequence[str] | None = None,
    batch_size: int | None = None,
    each: Callable[[Example, np.ndarray], None] | None = None,
) -> Evaluation:
    """Score a run or checkpoint on a split.

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
        protocol: see `fcn_jax.eval.protocols`, or the name of one; that of the run's recipe
            (section `eval`) if None, "native" without a run.
        settings: settings of the protocol; others are those of the recipe.
        metrics: as in `evaluate`; those of the recipe if None.
        batch_size: as in `Predictor`; that of the recipe if None.
        each: as in `evaluate`.

    Raises:
        CheckpointError: the path is not a checkpoint, its classes differ from the dataset's, or it
            has no averages.
        ConfigError: the checkpoint is not a run's, and no dataset is named; or a protocol, setting
            or metric is unknown or out of range.
        DataError: the dataset cannot be read, or the folder that the run recorded does not exist.
    """
    directory = checkpoint.find(path)
    weights = checkpoint.choose_weights(directory, weights)
    recipe = recipe_of(directory)
    chosen = choose(protocol, settings, recipe)
    extra = recipe.eval if recipe else EvalConfig()
    check_metrics(metrics or ())
    root = Path(data) if data else None
    notes: list[str] = []
    classes = remap = None
    if recipe is not None:
        own = recipe.data
        if dataset in (None, own.dataset):
            classes = own.classes
        if root is None and own.root and dataset in (None, own.dataset):
            root, notes = _recorded_root(own.root, directory)
        # Changes of classes are those of the run's own dataset.
        remap = Remap.of(own) if dataset in (None, own.dataset) else None
        dataset, split = dataset or own.dataset, split or own.val_split
    if dataset is None:
        raise ConfigError(f"{path}: not a run's checkpoint; name its dataset with --dataset NAME")
    split = split or "val"
    spec = checkpoint.read_spec(directory)
    recorded = ranges.from_json(spec.value_range)
    try:
        opened = open_splits(
            registry.default().dataset(dataset),
            root,
            [split],
            classes=classes,
            value_range=ranges.given_or_recorded(value_range, recorded),
            channels=spec.model.in_channels,
            keep_stored=spec.model.mean is not None,
            damaged=recipe.data.damaged if recipe else "refuse",
            remap=remap,
            training=False,
            task=spec.model.task,
        )
    except DataError as error:
        if notes:
            raise DataError(f"{error}; {'; '.join(notes)}") from error
        raise
    source = opened.sources[split]
    notes += opened.notes
    notes += _compare_classes(directory, source.classes, dataset)
    multiple, note = choose_multiple(source, chosen, exact=exact_sizes)
    notes += [f"{note}; --exact-sizes compiles one for each size"] if note else []
    predictor = Predictor.from_checkpoint(
        directory,
        protocol=chosen,
        pad_to_multiple=multiple,
        batch_size=extra.batch_size if batch_size is None else batch_size,
        devices=jax.local_devices(),
        weights=weights,
    )
    names = extra.metrics if metrics is None else metrics
    found = evaluate(predictor, source, metrics=names, each=each)
    return dataclasses.replace(
        found,
        checkpoint=directory,
        dataset=dataset,
        split=split,
        weights=weights,
        notes=(*notes, *found.notes),
    )


def recipe_of(directory: Path) -> Config | None:
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
