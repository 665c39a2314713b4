"""Segment files: images in, masks and overlays out."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from fcn_jax.data.decode import read_image
from fcn_jax.errors import DataError, listing
from fcn_jax.infer import draw
from fcn_jax.infer.predictor import Predictor

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def predict_files(checkpoint: str | Path, images: Sequence[str], output: Path) -> Iterator[tuple[Path, Path]]:
    """Segment images, each to `STEM.png` (indexed, of the image's own size) and `STEM_overlay.png`.

    Args:
        checkpoint: a run (its best checkpoint), one of its checkpoints, or a converted model.
        images: files, folders (their images, not those of subfolders) or globs.
        output: directory to write; made if missing.

    Yields:
        The two files written, for each image that can be read, in turn.

    Raises:
        DataError: nothing matches, or two images would write the same file; and at the end, when all others are done, for images that
            are unreadable.
        CheckpointError: not a checkpoint.
    """
    files = find_images(images)
    predictor = Predictor.from_checkpoint(checkpoint)
    faults = []
    for file in files:
        try:
            image = read_image(file)
        except DataError as fault:
            faults.append(str(fault))
            continue
        mask = predictor(image)
        paths = output / f"{file.stem}.png", output / f"{file.stem}_overlay.png"
        draw.write_mask(paths[0], mask, predictor.classes)
        draw.write_image(paths[1], draw.overlay(image, mask, predictor.classes))
        yield paths
    if faults:
        raise DataError(f"{len(faults)} of {len(files)} images left out: {listing(faults)}")


def find_images(patterns: Sequence[str]) -> list[Path]:
    """The files that files, folders and globs mean, in order, without repeats.

    Raises:
        DataError: a pattern matches no image, or two images have the same stem, so that one result would overwrite the other.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(p for p in map(Path, glob.glob(pattern, recursive=True)) if p.suffix.lower() in IMAGE_SUFFIXES)
        if not matches:
            what = "holds no images" if path.is_dir() else "no such image"
            raise DataError(f"{pattern}: {what}; known are {', '.join(IMAGE_SUFFIXES)}")
        found.update(dict.fromkeys(matches))
    outputs: dict[str, Path] = {}
    for file in found:
        for name in (file.stem, f"{file.stem}_overlay"):
            if outputs.setdefault(name, file) != file:
                raise DataError(
                    f"{outputs[name]} and {file} would both write {name}.png; predict them to different folders with -o"
                )
    return list(found)
