"""Segment image files: write masks and overlays.

Inputs and files of other programs are never replaced. Results of an earlier prediction carry a mark
in their header (`fcn_jax.eval.draw.is_result`): they are replaced only on request and are never
inputs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fcn_jax import checkpoint as checkpoints
from fcn_jax.data import value_range as ranges
from fcn_jax.data.decode import read_image
from fcn_jax.data.images.picture import as_rgb
from fcn_jax.data.value_range import Scaling
from fcn_jax.errors import CheckpointError, ConfigError, DataError, WriteError, listing
from fcn_jax.eval import draw, padding
from fcn_jax.eval.evaluate import recipe_of
from fcn_jax.eval.image_files import counted, find_images, identity
from fcn_jax.eval.predictor import Predictor
from fcn_jax.eval.protocols import D2L, Protocol, choose
from fcn_jax.runtime import destination, distributed
from fcn_jax.runtime.progress import Progress


def predict_files(
    checkpoint: str | Path,
    images: Sequence[str],
    output: Path,
    *,
    overwrite: bool = False,
    value_range: tuple[float, float] | None = None,
    exact_sizes: bool = False,
    weights: str | None = None,
    protocol: Protocol | str | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[Path, Path]]:
    """Segment images; write `STEM.png` (an indexed mask) and `STEM_overlay.png` for each.

    The mask of a model of the task "multilabel" is `STEM.tif`, with a page for each class. All
    paths are checked before the checkpoint is loaded and before anything is written. Of several
    processes, each segments its share of the images.

    Args:
        checkpoint: a run (its best checkpoint), one of its checkpoints, or a converted model.
        images: files, folders (their images, not those of subfolders) or globs; see
            `fcn_jax.eval.image_files.find_images`.
        output: directory to write; created if missing.
        overwrite: replace results of an earlier prediction. Inputs and other files are never
            replaced.
        value_range: stored values that become 0 and 255 in images of more than 8 bits, see
            `fcn_jax.data.decode.read_image`; those of the training (`data.value_range`) if None.
        exact_sizes: run every image at its own size, however many sizes there are; see
            `fcn_jax.eval.padding`.
        weights: "ema" for the averages of the weights, or "raw"; the averages if there are any, if
            None.
        protocol: see `fcn_jax.eval.protocols`, or the name of one; that of the run's recipe if
            None, as far as it applies to whole images.
        settings: settings of the protocol; others are those of the recipe.
        batch_size: as in `Predictor`.
        say: called with lines about skipped files and assumptions.

    Returns:
        Iterator over the two files written for each readable image, in order. It predicts as it
        goes, and raises `DataError` at the end if images were unreadable.

    Raises:
        DataError: there is nothing to segment, or two images would write the same file.
        WriteError: the folder cannot be written, or a file to write is an input, a file of another
            program, or a result of an earlier prediction without `overwrite`.
        CheckpointError: the path is not a checkpoint.
        ConfigError: a protocol or a setting is unknown or out of range.
    """
    found = find_images(images)
    if found.other:
        kinds = listing(counted(number, kind) for kind, number in sorted(found.other.items()))
        say(f"left out {kinds} of a format that cannot be read")
    if found.results:
        say(f"left out {counted(len(found.results), 'result')} of an earlier prediction")
    inputs = {key for path in found.images if (key := identity(path))}
    ending = _mask_ending(checkpoint)
    targets = {
        path: (output / f"{path.stem}{ending}", output / f"{path.stem}_overlay.png")
        for path in found.images
    }
    destination.check_folder(output)
    paths = [path for pair in targets.values() for path in pair]
    if problems := _obstacles(paths, inputs, overwrite):
        raise WriteError(f"nothing was written: {problems}")
    directory = checkpoints.find(checkpoint)
    weights = checkpoints.choose_weights(directory, weights)
    if protocol == D2L.name:
        raise ConfigError(
            f"protocol {protocol} scores random crops; choose another one to predict whole images"
        )
    recipe = recipe_of(directory)
    chosen = choose(protocol, settings, recipe).for_prediction()
    multiple, note = 1, ""
    if chosen.many_sizes:
        multiple, note = padding.choose_multiple(targets, exact=exact_sizes)
    if note:
        say(f"{note}; --exact-sizes compiles one for each size")
    if batch_size is None and recipe is not None:
        batch_size = recipe.eval.batch_size
    predictor = Predictor.from_checkpoint(
        directory,
        protocol=chosen,
        pad_to_multiple=multiple,
        batch_size=batch_size,
        devices=jax.local_devices(),
        weights=weights,
    )
    scaling = ranges.given_or_recorded(value_range, predictor.value_range)
    if scaling is None:
        with Progress("reading bit depths", len(targets)) as progress:
            scaling = ranges.assumed(
                targets, progress=progress.update, skip_faulty=True, channels=predictor.channels
            )
        if scaling.note:
            say(f"{scaling.note}; --value-range LOW HIGH sets another range")
    # All processes have looked at the folder before one of them writes.
    distributed.wait_for_all()
    number, count = distributed.index(), distributed.count()
    first, end = len(targets) * number // count, len(targets) * (number + 1) // count
    own = dict(list(targets.items())[first:end])
    return _predict_each(predictor, own, len(targets), inputs, overwrite, scaling)


def _mask_ending(checkpoint: str | Path) -> str:
    """The ending of mask files. What is wrong with a checkpoint is reported when it is loaded."""
    try:
        spec = checkpoints.read_spec(checkpoints.find(checkpoint))
    except CheckpointError:
        return ".png"
    return ".tif" if spec.model.task == "multilabel" else ".png"


def _predict_each(
    predictor: Predictor,
    targets: dict[Path, tuple[Path, Path]],
    total: int,
    inputs: set[tuple[int, int]],
    overwrite: bool,
    value_range: Scaling,
) -> Iterator[tuple[Path, Path]]:
    faults = []
    for file, found in _segmented(predictor, list(targets), value_range):
        mask_path, overlay_path = targets[file]
        if isinstance(found, str):
            faults.append(found)
            continue
        mask, overlay = found
        # Another program may have written there in the meantime.
        if problems := _obstacles([mask_path, overlay_path], inputs, overwrite):
            raise WriteError(
                f"stopped before {mask_path}; earlier results are complete: {problems}"
            )
        draw.write_mask(mask_path, mask, predictor.classes)
        draw.write_overlay(overlay_path, overlay)
        yield mask_path, overlay_path
    faults = [fault for found in distributed.exchange(faults) for fault in found]
    if faults:
        raise DataError(f"{len(faults)} of {total} images left out: {listing(faults)}")


def _segmented(
    predictor: Predictor, files: Sequence[Path], value_range: Scaling
) -> Iterator[tuple[Path, tuple[np.ndarray, np.ndarray] | str]]:
    """Yield each file with its mask and overlay, or with the reason why it has none, in order.

    As many images as the predictor has devices are read and segmented together.
    """
    for start in range(0, len(files), predictor.num_devices):
        group = files[start : start + predictor.num_devices]
        faults, images, masks = {}, {}, {}
        for file in group:
            try:
                images[file] = read_image(
                    file, value_range=value_range, channels=predictor.channels
                )
            except DataError as fault:
                faults[file] = str(fault)
        if len(images) > 1:
            # If the memory does not suffice, each is tried alone, to find those that are too large.
            with contextlib.suppress(MemoryError, jax.errors.JaxRuntimeError):
                masks = {file: found.mask for file, found in predictor.stream(images.items())}
        for file in group:
            if file in faults:
                yield file, faults[file]
            else:
                yield file, _mask_and_overlay(predictor, file, images.pop(file), masks.get(file))


def _mask_and_overlay(
    predictor: Predictor, file: Path, image: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray] | str:
    """The results of an image, which is segmented if `mask` is None; or why it has none."""
    try:
        mask = predictor(image) if mask is None else mask
        return mask, draw.overlay(as_rgb(image), mask, predictor.classes)
    except DataError as fault:
        return str(fault)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        reason = (str(error).splitlines() or ["no memory is left"])[0]
        return (
            f"{file}: cannot be segmented, the image may be too large for the memory "
            f"({reason[:160]})"
        )


def _obstacles(targets: Sequence[Path], inputs: set[tuple[int, int]], overwrite: bool) -> str:
    """All reasons why files must not be written, in one line; "" if there are none."""
    replaced, foreign, results, long = [], [], [], []
    for path in targets:
        if destination.is_too_long(path.name):
            long.append(str(path))
        elif not os.path.lexists(path):
            continue
        elif identity(path) in inputs:
            replaced.append(str(path))
        elif os.path.islink(path) or not draw.is_result(path):
            foreign.append(str(path))
        elif not overwrite:
            results.append(str(path))
    problems = []
    if replaced:
        problems.append(
            f"{counted(len(replaced), 'input')} would be replaced by results: {listing(replaced)}"
        )
    if foreign:
        problems.append(
            f"{counted(len(foreign), 'file')} would be replaced that fcn-jax predict did not "
            f"write: {listing(foreign)}"
        )
    if replaced or foreign:
        problems.append("write to another folder with -o DIR")
    if results:
        exist = "exist" if len(results) > 1 else "exists"
        advice = "and nothing else" if problems else "-o DIR writes to another folder"
        problems.append(
            f"{counted(len(results), 'result')} of an earlier prediction {exist}: "
            f"{listing(results)}; --overwrite replaces results, {advice}"
        )
    if long:
        problems.append(
            f"{counted(len(long), 'name')} would be too long: {listing(long)}; rename the images"
        )
    return "; ".join(problems)
