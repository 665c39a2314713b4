"""Masks of the task "multilabel": any number of classes per pixel, one channel for each class.

A mask is an array `.npy` of shape (height, width, K), or a TIFF of K pages or K channels. Its
values are 0, 1 (the pixel has the class) and 255 (ignored for this class).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fcn_jax.data.contents import name_of, read_bytes
from fcn_jax.data.datasets.directory import DirectorySource
from fcn_jax.data.decode import read_image
from fcn_jax.data.geometry import resize
from fcn_jax.data.images import npy, orientation, tiff
from fcn_jax.data.images.tiff_samples import samples
from fcn_jax.data.inspection import Findings
from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.data.source import Source
from fcn_jax.data.threads import on_threads
from fcn_jax.errors import ConfigError, DamagedError, DataError, SizeMismatchError, listing
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Example, Record
from fcn_jax.runtime.progress import Progress

MOST_CLASSES = 254
"""Pictures of masks are indexed, and need two further indices: no class, and ignored."""

_EXPECTED = "expected 0, 1 (the pixel has the class) and 255 (ignored)"


def read_multilabel_mask(
    mask: Path | bytes, num_classes: int, *, name: str | None = None
) -> np.ndarray:
    """Decode a mask, upright.

    Args:
        mask: a file, or its contents.
        num_classes: K.
        name: the name of the mask in an error; by default its path.

    Returns:
        u8[H,W,K] of 0, 1 and `IGNORE_INDEX`.

    Raises:
        DamagedError: the file is truncated or corrupt.
        DataError: the file is missing, of another format, does not have K channels, or has other
            values.
    """
    name = name or name_of(mask)
    data = read_bytes(mask, name)
    if data.startswith(npy.SIGNATURE):
        values, turn = npy.decode(data, name, labels=True), 1
    elif data.startswith(tiff.SIGNATURES):
        pages = tiff.pages(data, name)
        if len({page.size for page in pages}) > 1:
            raise DataError(
                f"{name}: the TIFF's pages differ in size; save one size for all classes"
            )
        values = np.concatenate([samples(page, data) for page in pages], -1)
        turn = pages[0].orientation
    else:
        raise DataError(
            f"{name}: a mask of several classes per pixel must be a .npy file of shape (height, "
            "width, classes) or a TIFF with a page or channel for each class"
        )
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[2] != num_classes:
        raise DataError(
            f"{name}: the mask has {values.shape[2]} channels, and there are {num_classes} "
            "classes; save one channel for each class, in the order of the list"
        )
    if not np.isin(values, (0, 1, IGNORE_INDEX)).all():
        others = np.setdiff1d(values, (0, 1, IGNORE_INDEX))
        raise DataError(
            f"{name}: the mask has the values {listing(map(str, others), 4)}; {_EXPECTED}"
        )
    return orientation.upright(np.ascontiguousarray(values, np.uint8), turn)


@dataclasses.dataclass(eq=False)
class MultilabelSource(DirectorySource):
    """A split in a folder whose masks are read by `read_multilabel_mask`."""

    def __post_init__(self) -> None:
        """Masks are not read by a map of stored values."""
        super().__post_init__()
        self.labels = None

    def decode_resized(self, record: Record, factor: float) -> Example:
        """Decode a record at another size.

        Raises:
            DamagedError, DataError: as for `read_image` and `read_multilabel_mask`.
            SizeMismatchError: image and mask differ in size.
        """
        try:
            image = read_image(
                record.image,
                name=name_of(record.image, f"image of {record.id}"),
                value_range=self.value_range,
                channels=self.channels,
            )
            name = name_of(record.mask, f"mask of {record.id}")
            mask = read_multilabel_mask(record.mask, len(self.classes), name=name)
        except DamagedError as error:
            raise DamagedError(f"{error}, or skip damaged files with data.damaged=skip") from error
        if image.shape[:2] != mask.shape[:2]:
            (height, width), (tall, wide) = image.shape[:2], mask.shape[:2]
            raise SizeMismatchError(
                f"{name}: the mask is {wide}x{tall} (width x height) but its image {record.id} is "
                f"{width}x{height}; an array has the shape (height, width, classes)"
            )
        return resize(Example(record.id, image, mask), factor)


def multilabel(source: Source, dataset: str) -> Source:
    """The source with masks u8[H,W,K].

    Args:
        source: a dataset's split: of a folder, or any whose masks have an axis of classes.
        dataset: the name of the dataset.

    Raises:
        ConfigError: its masks have one class per pixel, or there are too many classes.
    """
    if len(source.classes) > MOST_CLASSES:
        raise ConfigError(
            f"model.task is 'multilabel', and the dataset has {len(source.classes)} classes; "
            f"expected at most {MOST_CLASSES}"
        )
    if type(source) is DirectorySource and (dataset == "folder" or _may_hold_channels(source)):
        fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
        return MultilabelSource(**{**fields, "classes": _visible(source.classes)})
    if source.decode(source[0]).mask.ndim == 3:
        return source
    raise ConfigError(
        f"model.task is 'multilabel', and dataset '{dataset}' has one class per pixel; use "
        "data.dataset = 'folder' with masks of one channel for each class, or 'multiclass' or "
        "'binary'"
    )


def _may_hold_channels(source: Source) -> bool:
    mask = source[0].mask
    return isinstance(mask, Path) and mask.suffix.lower() in (".npy", ".tif", ".tiff")


def _visible(classes: Classes) -> Classes:
    """The classes with VOC's colors from the second on, if theirs begin with its black background.

    No class is a background here, and black is not drawn over an image.
    """
    count = len(classes)
    if classes.palette != voc_palette(count):
        return classes
    return Classes(classes.names, voc_palette(count + 1)[1:])


def label_counts(mask: np.ndarray) -> np.ndarray:
    """Count the pixels of a mask u8[H,W,K]: i64[3,K], without the class, with it, and ignored."""
    return np.array([(mask == value).sum((0, 1)) for value in (0, 1, IGNORE_INDEX)], np.int64)


def absent_note(split: str, pixels: np.ndarray, names: Sequence[str]) -> str | None:
    """Name the classes without a pixel in a split, or return None.

    Args:
        split: its name.
        pixels: i64[K], the number of pixels of each class.
        names: the names of the classes.
    """
    absent = [name for name, count in zip(names, pixels.tolist(), strict=True) if not count]
    if not absent:
        return None
    return f"{split}: {len(absent)} of {len(names)} classes have no pixel: {listing(absent)}"


def inspect(splits: Mapping[str, Source]) -> Findings:
    """Read all masks, and count the pixels of each class.

    Args:
        splits: sources of `multilabel` by the name of their split, all of one dataset.

    Returns:
        As `fcn_jax.data.inspection.inspect`; the number of pixels that are ignored is the mean over
        the classes.

    Raises:
        DataError: masks are missing, damaged or of other values; the first dozen are named.
    """
    total = sum(map(len, splits.values()))
    counts, image_counts, notes, problems = {}, {}, list[str](), list[str]()
    with Progress("reading masks", total) as progress:
        for split, source in splits.items():
            num_classes = len(source.classes)

            def one(index: int, source: Source = source) -> np.ndarray | str:
                try:
                    mask = source.decode(source[index]).mask
                except DataError as error:
                    return str(error)
                return label_counts(mask)

            found = on_threads(one, range(len(source)), lambda *_: progress.advance())
            problems += [each for each in found if isinstance(each, str)]
            each_mask = [each for each in found if not isinstance(each, str)]
            values = np.array(each_mask, np.int64).reshape(-1, 3, num_classes)
            negative, positive, ignored = values[:, 0], values[:, 1], values[:, 2]
            counts[split] = np.append(positive.sum(0), round(ignored.sum() / num_classes))
            image_counts[split] = ((positive > 0) * (negative + positive)).sum(0)
            if note := absent_note(split, positive.sum(0), source.classes.names):
                notes.append(note)
    if problems:
        count = f"{len(problems)} masks or images are not usable: " if len(problems) > 1 else ""
        raise DataError(count + listing(dict.fromkeys(problems), separator="; "))
    return Findings(counts, image_counts, tuple(notes))
