"""Segment files: images in, masks and overlays out.

No existing file is lost: neither an input nor a file of another program is ever replaced. Results
of an earlier prediction carry a mark in their header (`fcn_jax.eval.draw.is_result`). They are
replaced on request only, and are not taken as inputs.
"""

from __future__ import annotations

import dataclasses
import difflib
import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from fcn_jax import checkpoint as checkpoints
from fcn_jax.data import value_range as ranges
from fcn_jax.data.datasets.directory import IMAGE_SUFFIXES
from fcn_jax.data.decode import read_image
from fcn_jax.data.progress import PassProgress
from fcn_jax.data.value_range import Assumed, Range
from fcn_jax.errors import DataError, WriteError, listing
from fcn_jax.eval import draw
from fcn_jax.eval.predictor import Predictor
from fcn_jax.runtime import destination

_OTHER_PICTURES = frozenset(
    f"{ending} file"
    for ending in (
        *(
            ".arw",
            ".avif",
            ".cr2",
            ".cr3",
            ".dng",
            ".exr",
            ".gif",
            ".hdr",
            ".heic",
            ".heif",
            ".jfif",
            ".jp2",
            ".nef",
            ".npy",
            ".pgm",
        ),
        *(".ppm", ".psd", ".raf", ".svg", ".tga"),
    )
)
"""Kinds of files that a user would expect to be segmented, as `_contents` names them."""


def predict_files(
    checkpoint: str | Path,
    images: Sequence[str],
    output: Path,
    *,
    overwrite: bool = False,
    value_range: tuple[float, float] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[Path, Path]]:
    """Segment images, each to `STEM.png` (indexed, of the image's own size) and `STEM_overlay.png`.

    All paths are checked at once, before the checkpoint is read and before anything is written.

    Args:
        checkpoint: a run (its best checkpoint), one of its checkpoints, or a converted model.
        images: files, folders (their images, not those of subfolders) or globs; see `find_images`.
        output: directory to write; made if missing.
        overwrite: replace results of an earlier prediction. Inputs and other files are never
            replaced.
        value_range: stored values that become 0 and 255 in images of more than 8 bits, see
            `fcn_jax.data.decode.read_image`; those that the run was trained with (its
            `data.value_range`) if not given.
        say: takes lines about what was left out or assumed.

    Returns:
        Iterator that predicts: it gives the two files written for each readable image, in order.
        When all are done, it raises `DataError` that names the unreadable ones.

    Raises:
        DataError: there is nothing to segment, or two images would write the same file.
        WriteError: a file to write is an input or somebody else's, or a result of an earlier
            prediction without `overwrite`; or the folder cannot be written.
        CheckpointError: not a checkpoint.
    """
    found = find_images(images)
    if found.other:
        say(
            f"left out {listing(_count(number, kind) for kind, number in sorted(found.other.items()))} of a kind that is not read"
        )
    if found.results:
        say(f"left out {_count(len(found.results), 'result')} of an earlier prediction")
    inputs = {identity for path in found.images if (identity := _identity(path))}
    targets = {
        path: (output / f"{path.stem}.png", output / f"{path.stem}_overlay.png")
        for path in found.images
    }
    destination.check_folder(output)
    if problems := _obstacles(
        [path for pair in targets.values() for path in pair], inputs, overwrite
    ):
        raise WriteError(f"nothing was written: {problems}")
    directory = checkpoints.find(checkpoint)
    predictor = Predictor.from_checkpoint(directory)
    scaling = value_range or ranges.from_json(checkpoints.read_spec(directory).value_range)
    if scaling is None:
        with PassProgress("looking at bit depths", len(targets)) as progress:
            scaling = ranges.assumed(targets, progress=progress.show, skip_faulty=True)
        if scaling.note:
            say(f"{scaling.note}; --value-range LOW HIGH sets another range")
    return _predict_each(predictor, targets, inputs, overwrite, scaling)


def _predict_each(
    predictor: Predictor,
    targets: dict[Path, tuple[Path, Path]],
    inputs: set[tuple[int, int]],
    overwrite: bool,
    value_range: Range | Assumed,
) -> Iterator[tuple[Path, Path]]:
    faults = []
    for file, (mask_path, overlay_path) in targets.items():
        try:
            image = read_image(file, value_range=value_range)
            mask = predictor(image)
            overlay = draw.overlay(image, mask, predictor.classes)
        except DataError as fault:
            faults.append(str(fault))
            continue
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            reason = (str(error).splitlines() or ["no memory is left"])[0]
            faults.append(
                f"{file}: cannot be segmented, the image may be too large for the memory ({reason[:160]})"
            )
            continue
        if problems := _obstacles(
            [mask_path, overlay_path], inputs, overwrite
        ):  # somebody has written there meanwhile
            raise WriteError(f"stopped before {mask_path}, earlier results are whole: {problems}")
        draw.write_mask(mask_path, mask, predictor.classes)
        draw.write_overlay(overlay_path, overlay)
        yield mask_path, overlay_path
    if faults:
        raise DataError(f"{len(faults)} of {len(targets)} images left out: {listing(faults)}")


def _obstacles(targets: Sequence[Path], inputs: set[tuple[int, int]], overwrite: bool) -> str:
    """Why files must not be written, all of them together; "" if they may be."""
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
            f"{_count(len(foreign), 'file')} would be replaced that fcn-jax predict did not write: {listing(foreign)}"
        )
    if replaced or foreign:
        problems.append("write to another folder with -o DIR")
    if results:
        only = ", and nothing else" if problems else ""
        exist = f"{_count(len(results), 'result')} of an earlier prediction {'exist' if len(results) > 1 else 'exists'}"
        problems.append(
            f"{exist}: {listing(results)}; --overwrite replaces results{only or ', -o DIR writes to another folder'}"
        )
    if long:
        problems.append(
            f"{_count(len(long), 'name')} would be too long: {listing(long)}; rename the images"
        )
    return "; ".join(problems)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, the same under each of its names. None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@dataclasses.dataclass(frozen=True)
class Found:
    """What files, folders and globs mean.

    Attributes:
        images: the files to segment, in order, without repeats.
        results: masks and overlays of an earlier prediction that lie among them.
        other: pictures in the folders whose formats are not read: how many of which ending.
    """

    images: list[Path]
    results: list[Path]
    other: Counter[str]


def find_images(patterns: Sequence[str]) -> Found:
    """The files that files, folders and globs mean.

    A folder or glob stands for its files that end as images do and are not hidden. A named file
    counts whatever its ending. Masks and overlays of an earlier prediction are left out even where
    they are named, because a shell expands `photos/*` to all names.

    Args:
        patterns: the name of an existing file or folder, or else a glob, `**` included.

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
            # One entry per name, however its folder is spelled. A link to a file is another name.
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
            f"nothing to segment: {_count(len(results), 'file')} found, all of them results of fcn-jax predict: "
            f"{listing(map(str, results))}"
        )
    folders = {Path(pattern).resolve() for pattern in patterns if os.path.isdir(pattern)}
    other: Counter[str] = sum((_contents(folder) for folder in folders), Counter())
    return Found(
        _distinct(images),
        results,
        Counter({kind: n for kind, n in other.items() if kind in _OTHER_PICTURES}),
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
    """Why a pattern means no image."""
    path = Path(pattern)
    known = f"known endings are {', '.join(IMAGE_SUFFIXES)}"
    if os.path.isdir(path):
        kinds = _contents(path)
        if not kinds:
            return f"{pattern}: the folder is empty"
        held = listing(
            _count(number, kind)
            for kind, number in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        )
        deeper = (
            f"; its folders are searched by a glob: '{path / '**' / '*'}'"
            if "folder" in kinds
            else ""
        )
        return f"{pattern}: holds no images but {held}; {known}{deeper}"
    if os.path.islink(path):
        return f"{pattern}: is a symbolic link to {os.readlink(path)}, which does not exist"
    if glob.has_magic(pattern):
        return f"{pattern}: matches no image; {known}"
    if not os.path.isdir(path.parent):
        return f"{pattern}: no such image; there is no folder {path.parent}"
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.7)
    except OSError:
        near = []
    return f"{pattern}: no such image" + (
        f"; did you mean '{path.parent / near[0]}'?" if near else ""
    )


def _contents(folder: Path) -> Counter[str]:
    """How many files of which ending, and how many folders, a folder holds, without hidden ones."""
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
    """The images without further names of the same file that would write the same result.

    Raises:
        DataError: different images would write the same file. Names that differ in case or in the
            spelling of accents count as one, as they are one file on some file systems.
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
            f"{_count(len(clashes), 'pair')} of images would write the same file: {listing(clashes)}; rename one of each pair, or predict "
            "them to different folders with -o"
        )
    return kept


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
