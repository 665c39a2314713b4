"""Compare a dataset with its descriptor, on its images."""

from __future__ import annotations

import collections
import functools
import math
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from fcn_jax.data.transforms import resize
from fcn_jax.errors import ConfigError, DataError, listing
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Dataset, Example, Record, Source
from fcn_jax.plugins.testing.contract import check_registration
from fcn_jax.plugins.testing.subject import require

_NO_SPLIT = "no-such-split"

_FACTORS = (0.7, 0.45, 0.15, 0.05)
"""Factors at which `decode_resized` is compared with the full image; the first is above 1/2."""


def check_dataset(
    dataset: str | Dataset,
    root: str | Path | None = None,
    splits: Sequence[str] = ("train", "val"),
    samples: int = 8,
) -> None:
    """Compare a dataset with its descriptor.

    Checked: that a root that is a file, or an unknown split, raises `DataError`; for every split,
    that there are images, each with its own name; that the classes' names and colors fit together;
    that images are u8[H,W,3] and masks u8[H,W] of the same size with labels below the number of
    classes or `IGNORE_INDEX`; that decoding twice gives the same result, and unreadable files raise
    `DataError`; that `decode_resized` gives what resizing the full image gives;
    that the source pickles, and is the same when it is opened again.

    Args:
        dataset: a descriptor, or the name of a registered one.
        root: its folder, as `--data` gives it; None for a dataset that needs none.
        splits: splits that it must have, at least one.
        samples: number of images to decode per split, at least 1, spread over the split.

    Raises:
        AssertionError: a promise is broken.
        ConfigError: `splits` is empty.
        DataError: the dataset is not at `root`; this is the dataset's own error.
    """
    if not splits:
        raise ConfigError("check_dataset: splits is empty; name at least one, such as 'train'")
    descriptor = registry.default().dataset(dataset) if isinstance(dataset, str) else dataset
    label = f"dataset '{descriptor.name}'"
    check_registration(label, descriptor)
    root = None if root is None else Path(root)
    if root is not None:  # a dataset that needs no folder may ignore it
        with tempfile.NamedTemporaryFile() as file:
            _check_refusal(label, descriptor, Path(file.name), splits[0], "a root that is a file")
    _check_refusal(label, descriptor, root, _NO_SPLIT, f"a split '{_NO_SPLIT}'")
    for split in splits:
        source, again = descriptor.open(root, split), descriptor.open(root, split)
        _check_split(f"{label}, split '{split}'", source, again, samples)


def _check_refusal(label: str, dataset: Dataset, root: Path | None, split: str, what: str) -> None:
    try:
        dataset.open(root, split)
    except DataError:
        return
    except Exception as error:
        raise AssertionError(
            f"{label}: {what} raises {type(error).__name__} ({error}); it must be a DataError"
        ) from error
    raise AssertionError(
        f"{label}: {what} is opened; it must raise a DataError that names the missing thing"
    )


def _check_split(label: str, source: Source, again: Source, samples: int) -> None:
    require(
        isinstance(source, Source),
        f"{label}: it is a {type(source).__name__}; it must be an fcn_jax.api.Source",
    )
    _check_classes(label, source.classes)
    count = len(source)
    require(count > 0, f"{label}: it has no images; opening an empty split must raise DataError")
    records = list(source)
    for index, record in enumerate(records):
        require(
            isinstance(record, Record) and isinstance(record.id, str) and record.id != "",
            f"{label}: record {index} is {record!r:.100}; it must be an fcn_jax.api.Record with an "
            "id",
        )
    names = [record.id for record in records]
    repeated = sorted(name for name, times in collections.Counter(names).items() if times > 1)
    require(not repeated, f"{label}: images have the same id: {listing(repeated)}")
    require(
        [record.id for record in again] == names,
        f"{label}: opened again, it has other images or another order",
    )
    try:
        copy = pickle.loads(pickle.dumps(source))
    except Exception as error:
        raise AssertionError(
            f"{label}: the source does not pickle ({error}); each input worker holds a copy"
        ) from error
    for index in sorted({int(number) for number in np.linspace(0, count - 1, min(samples, count))}):
        example = source.decode(records[index])
        _check_example(
            f"{label}, image '{names[index]}'", example, names[index], len(source.classes)
        )
        for other, how in (
            (source.decode(records[index]), "decoded twice"),
            (copy.decode(copy[index]), "decoded by an unpickled source"),
        ):
            require(
                np.array_equal(other.image, example.image)
                and np.array_equal(other.mask, example.mask),
                f"{label}, image '{names[index]}' differs when it is {how}",
            )
        for factor in _FACTORS:
            resized = f"{label}, image '{names[index]}', decode_resized by {factor}"
            _check_resized(resized, source.decode_resized(records[index], factor), example, factor)
    for part in ("image", "mask"):
        _check_unreadable(label, "decode", source.decode, records[0], part)
        small = functools.partial(source.decode_resized, factor=_FACTORS[-1])
        _check_unreadable(label, "decode_resized", small, records[0], part)


def _check_classes(label: str, classes: Classes) -> None:
    names, palette = classes.names, classes.palette
    require(
        1 <= len(names) <= IGNORE_INDEX,
        f"{label}: it has {len(names)} classes; there must be from 1 to {IGNORE_INDEX}",
    )
    require(
        len(set(names)) == len(names),
        f"{label}: the classes are named {names}; each name must occur once",
    )
    require(
        len(palette) == len(names)
        and all(len(color) == 3 and all(0 <= part <= 255 for part in color) for color in palette),
        f"{label}: the palette is {palette}; it must have one RGB color, 0 to 255, for each of the "
        f"{len(names)} classes",
    )


def _check_example(label: str, example: Example, name: str, num_classes: int) -> None:
    require(
        isinstance(example, Example),
        f"{label}: decode returns a {type(example).__name__}; it must be an fcn_jax.api.Example",
    )
    image, mask = example.image, example.mask
    require(example.id == name, f"{label}: decode returns the id '{example.id}'")
    require(
        image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0,
        f"{label}: the image is {image.dtype}{list(image.shape)}; it must be uint8[H, W, 3]",
    )
    require(
        mask.dtype == np.uint8 and mask.shape == image.shape[:2],
        f"{label}: the mask is {mask.dtype}{list(mask.shape)}, the image {list(image.shape)}; the "
        "mask must be uint8[H, W] of the same size",
    )
    wrong = [
        str(value)
        for value in np.unique(mask).tolist()
        if value >= num_classes and value != IGNORE_INDEX
    ]
    require(
        not wrong,
        f"{label}: the mask has labels {listing(wrong)}; allowed are 0 to {num_classes - 1} and "
        f"{IGNORE_INDEX} (ignored)",
    )


def _check_resized(label: str, example: Example, whole: Example, factor: float) -> None:
    """Compare an example decoded at another size with the full one, resized."""
    pixels, whole = whole.image, resize(whole, factor)
    require(
        isinstance(example, Example),
        f"{label}: it returns a {type(example).__name__}; it must be an fcn_jax.api.Example",
    )
    require(example.id == whole.id, f"{label}: it returns the id '{example.id}'")
    require(
        example.image.dtype == np.uint8 and example.image.shape == whole.image.shape,
        f"{label}: the image is {example.image.dtype}{list(example.image.shape)}; it must be "
        f"uint8{list(whole.image.shape)}",
    )
    require(
        np.array_equal(example.mask, whole.mask),
        f"{label}: the mask differs from the full mask, resized",
    )
    off = float(cv2.absdiff(example.image, whole.image).mean())
    allowed = 0.0
    if factor <= 0.5:
        # The more detail is averaged out, the more the result depends on the method: by up to 2 and
        # 0.6 of the detail on stripes and checkerboards of 1 to 63 pixels. The detail is measured
        # as the mean distance of pixels from the mean of the window that becomes one pixel.
        window = math.ceil(1 / factor)
        allowed = 2 + 0.75 * float(cv2.absdiff(pixels, cv2.blur(pixels, (window, window))).mean())
    require(
        off <= allowed,
        f"{label}: the image differs from the full image, resized, by {off:.1f} of 255 on average; "
        f"allowed are {allowed:.1f}",
    )


def _check_unreadable(
    label: str, name: str, decode: Callable[[Record], Example], record: Record, part: str
) -> None:
    """Check the error for a missing file, or for bytes that are not a picture."""

    def spoilt(there: Path | bytes) -> Path | bytes:
        return b"not a picture" if isinstance(there, bytes) else there.with_name("no-such-file.png")

    broken = (
        record._replace(image=spoilt(record.image))
        if part == "image"
        else record._replace(mask=spoilt(record.mask))
    )
    try:
        decode(broken)
    except DataError:
        return
    except Exception as error:
        raise AssertionError(
            f"{label}: {name} raises {type(error).__name__} ({error}) for an unreadable {part}; it "
            "must be a DataError that names it"
        ) from error
    raise AssertionError(f"{label}: {name} accepts a missing {part}; it must raise DataError")
