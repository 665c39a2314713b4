"""Segment image files: write masks and overlays.

Inputs and files of other programs are never replaced. Results of an earlier prediction carry a mark
in their header (`fcn_jax.eval.draw.is_result`): they are replaced only on request and are never
inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import glob
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fcn_jax import checkpoint as checkpoints
from fcn_jax.data import value_range as ranges
from fcn_jax.data.datasets.directory import IMAGE_SUFFIXES
from fcn_jax.data.decode import read_image
from fcn_jax.data.images.picture import as_rgb
from fcn_jax.data.value_range import Scaling
from fcn_jax.errors import CheckpointError, ConfigError, DataError, WriteError, listing
from fcn_jax.eval import draw, padding
from fcn_jax.eval.evaluate import recipe_of
from fcn_jax.eval.predictor import Predictor
from fcn_jax.eval.protocols import D2L, Protocol, choose
from fcn_jax.runtime import destination, distributed
from fcn_jax.runtime.progress import Progress

_OTHER_PICTURES = re.compile(
    r"\.(arw|avif|cr2|cr3|dng|exr|gif|hdr|heic|heif|jfif|jp2|nef|npz|pgm|ppm|psd|raf|svg|tga) file"
)
"""Kinds of files that a user might expect to be segmented, as named by `_contents`."""


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
        images: files, folders (their images, not those of subfolders) or globs; see `find_images`.
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
        kinds = listing(_count(number, kind) for kind, number in sorted(found.other.items()))
        say(f"left out {kinds} of a format that cannot be read")
    if found.results:
        say(f"left out {_count(len(found.results), 'result')} of an earlier prediction")
    inputs = {identity for path in found.images if (identity := _identity(path))}
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
        elif _identity(path) in inputs:
            replaced.append(str(path))
        elif os.path.islink(path) or not draw.is_result(path):
            foreign.append(str(path))
        elif not overwrite:
            results.append(str(path))
    problems = []
    if replaced:
        problems.append(
            f"{_count(len(replaced), 'input')} would be replaced by results: {listing(replaced)}"
        )
    if foreign:
        problems.append(
            f"{_count(len(foreign), 'file')} would be replaced that fcn-jax predict did not write: "
            f"{listing(foreign)}"
        )
    if replaced or foreign:
        problems.append("write to another folder with -o DIR")
    if results:
        exist = "exist" if len(results) > 1 else "exists"
        advice = "and nothing else" if problems else "-o DIR writes to another folder"
        problems.append(
            f"{_count(len(results), 'result')} of an earlier prediction {exist}: "
            f"{listing(results)}; --overwrite replaces results, {advice}"
        )
    if long:
        problems.append(
            f"{_count(len(long), 'name')} would be too long: {listing(long)}; rename the images"
        )
    return "; ".join(problems)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode, the same for all names of a file; None if the file cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@dataclasses.dataclass(frozen=True)
class Found:
    """The files that match files, folders and globs.

    Attributes:
        images: the files to segment, in order, without repeats.
        results: masks and overlays of an earlier prediction among them.
        other: number of pictures in the folders by file ending, for formats that cannot be read.
    """

    images: list[Path]
    results: list[Path]
    other: Counter[str]


def find_images(patterns: Sequence[str]) -> Found:
    """Find the images that files, folders and globs match.

    A folder or glob matches its files with an image's ending that are not hidden. A named file is
    taken whatever its ending. Masks and overlays of an earlier prediction are skipped even if they
    are named, because a shell expands `photos/*` to all names.

    Args:
        patterns: each is an existing file or folder, or a glob, which may contain `**`.

    Raises:
        DataError: a pattern matches no image, all matches are results of an earlier prediction, or
            two images would write the same file.
    """
    found: dict[tuple[Path, str], Path] = {}
    resolved: dict[Path, Path] = {}
    problems = []
    for pattern in patterns:
        if not pattern.strip():
            problems.append("an image's path is empty; name a file, a folder or a glob")
            continue
        try:
            matches = _matches(pattern)
        except OSError as error:
            problems.append(f"{pattern}: cannot be read ({error.strerror or error})")
            continue
        if not matches:
            problems.append(_nothing_there(pattern))
        for path in matches:
            # One entry per name, however its folder is spelled. A link to a file is a new name.
            folder = resolved.get(path.parent) or resolved.setdefault(
                path.parent, path.parent.resolve()
            )
            found.setdefault((folder, path.name), path)
    if problems:
        raise DataError("; ".join(problems))
    results = [path for path in found.values() if draw.is_result(path)]
    left = set(results)
    images = [path for path in found.values() if path not in left]
    if not images:
        raise DataError(
            f"nothing to segment: {_count(len(results), 'file')} found, all of them results of "
            f"fcn-jax predict: {listing(map(str, results))}"
        )
    folders = {Path(pattern).resolve() for pattern in patterns if os.path.isdir(pattern)}
    other: Counter[str] = sum((_contents(folder) for folder in folders), Counter())
    return Found(
        _distinct(images),
        results,
        Counter({kind: n for kind, n in other.items() if _OTHER_PICTURES.fullmatch(kind)}),
    )


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    if os.path.isdir(path):
        return sorted(entry for entry in path.iterdir() if _is_image_file(entry))
    if os.path.exists(path):
        return [path]
    # Leading folders that exist are literal: the brackets of "[2024] trip/*.jpg" do not match.
    base, parts = Path(path.anchor), list(path.parts[bool(path.anchor) :])
    while len(parts) > 1 and os.path.isdir(base / parts[0]):
        base /= parts.pop(0)
    relative = glob.glob(os.path.join(*parts), root_dir=base, recursive=True) if parts else []
    return sorted(entry for entry in (base / name for name in relative) if _is_image_file(entry))


def _is_image_file(path: Path) -> bool:
    return (
        path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and os.path.isfile(path)
    )


def _nothing_there(pattern: str) -> str:
    """Why a pattern matches no image."""
    path = Path(pattern)
    known = f"images end in {', '.join(IMAGE_SUFFIXES)}"
    if os.path.isdir(path):
        kinds = _contents(path)
        if not kinds:
            return f"{pattern}: the folder is empty"
        held = listing(
            _count(number, kind)
            for kind, number in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        )
        deeper = f"; to search its folders, use the glob '{path / '**' / '*'}'"
        return (
            f"{pattern}: contains no images, only {held}; {known}"
            f"{deeper if 'folder' in kinds else ''}"
        )
    if os.path.islink(path):
        return f"{pattern}: a symbolic link to {os.readlink(path)}, which does not exist"
    if glob.has_magic(pattern):
        return f"{pattern}: matches no image; {known}"
    if not os.path.isdir(path.parent):
        return f"{pattern}: no such image; there is no folder {path.parent}"
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.7)
    except OSError:
        near = []
    hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
    return f"{pattern}: no such image{hint}"


def _contents(folder: Path) -> Counter[str]:
    """Number of a folder's files by ending and of its folders, without hidden ones."""
    return Counter(
        "folder"
        if os.path.isdir(entry)
        else f"{entry.suffix.lower()} file"
        if entry.suffix
        else "file without ending"
        for entry in folder.iterdir()
        if not entry.name.startswith(".")
    )


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun.replace('file', 'files', 1) if noun.startswith('file') else noun + 's'}"


def _distinct(images: Sequence[Path]) -> list[Path]:
    """Drop second names of a file that would write the same result.

    Raises:
        DataError: different images would write the same file. Names that differ only in case or in
            the Unicode form of accents count as equal, as some file systems treat them so.
    """
    writers: dict[str, Path] = {}
    kept, clashes = [], []
    for image in images:
        stem = _folded(image.stem)
        names = stem, f"{stem}_overlay"
        others = [writers[name] for name in names if name in writers]
        if any(
            _folded(other.stem) == stem and _identity(other) == _identity(image) for other in others
        ):
            continue
        if others:
            clashes.append(f"{others[0]} and {image}")
            continue
        writers.update(dict.fromkeys(names, image))
        kept.append(image)
    if clashes:
        raise DataError(
            f"{_count(len(clashes), 'pair')} of images would write the same file: "
            f"{listing(clashes)}; rename one of each pair, or predict them to different folders "
            "with -o"
        )
    return kept


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
