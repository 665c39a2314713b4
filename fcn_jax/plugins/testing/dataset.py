"""Compare a dataset with its descriptor, on its images."""

from __future__ import annotations

import collections
import functools
import math
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fcn_jax.data.geometry import resize
from fcn_jax.data.source import Source
from fcn_jax.errors import ConfigError, DataError, listing
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Dataset, Example, Record
from fcn_jax.plugins.testing.contract import check_registration
from fcn_jax.plugins.testing.subject import Subject

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
    subject = Subject(f"dataset '{descriptor.name}'")
    check_registration(subject, descriptor)
    root = None if root is None else Path(root)
    if root is not None:  # a dataset that needs no folder may ignore it
        with tempfile.NamedTemporaryFile() as file:
            _require_data_error(
                subject, "a root that is a file", descriptor.open, Path(file.name), splits[0]
            )
    _require_data_error(subject, f"a split '{_NO_SPLIT}'", descriptor.open, root, _NO_SPLIT)
    for split in splits:
        source, again = descriptor.open(root, split), descriptor.open(root, split)
        _check_split(subject.part(f", split '{split}'"), source, again, samples)


def _require_data_error(
    subject: Subject, wrong: str, function: Callable[..., Any], *args: Any
) -> None:
    """Check that a call with something wrong raises `DataError`."""
    try:
        function(*args)
    except DataError:
        return
    except Exception as error:
        subject.fail(
            f"{wrong} raises {type(error).__name__} ({error}); it must be a DataError that names it"
        )
    subject.fail(f"{wrong} is accepted; it must raise a DataError that names it")


def _check_split(subject: Subject, source: Source, again: Source, samples: int) -> None:
    if not isinstance(source, Source):
        subject.fail(f"it is a {type(source).__name__}; it must be an fcn_jax.api.Source")
    _check_classes(subject, source.classes)
    count = len(source)
    if count < 1:
        subject.fail("it has no images; opening an empty split must raise DataError")
    records = list(source)
    for index, record in enumerate(records):
        if not (isinstance(record, Record) and isinstance(record.id, str) and record.id):
            subject.fail(
                f"record {index} is {record!r:.100}; it must be an fcn_jax.api.Record with an id"
            )
    names = [record.id for record in records]
    repeated = sorted(name for name, times in collections.Counter(names).items() if times > 1)
    if repeated:
        subject.fail(f"images have the same id: {listing(repeated)}")
    if [record.id for record in again] != names:
        subject.fail("opened again, it has other images or another order")
    try:
        copy = pickle.loads(pickle.dumps(source))
    except Exception as error:
        subject.fail(f"the source does not pickle ({error}); each input worker holds a copy")
    for index in np.linspace(0, count - 1, min(samples, count)).astype(int).tolist():
        record, image = records[index], subject.part(f", image '{names[index]}'")
        example = source.decode(record)
        _check_example(image.part(", decode"), example, record.id, len(source.classes))
        for other, how in (
            (source.decode(record), "decoded twice"),
            (copy.decode(copy[index]), "decoded by an unpickled source"),
        ):
            if not all(map(np.array_equal, other[1:], example[1:])):
                image.fail(f"it differs when it is {how}")
        for factor in _FACTORS:
            resized = source.decode_resized(record, factor)
            _check_resized(image.part(f", decode_resized by {factor}"), resized, example, factor)
    for field in ("image", "mask"):
        change: dict[str, Any] = {field: _spoilt(getattr(records[0], field))}
        broken = records[0]._replace(**change)
        small = functools.partial(source.decode_resized, factor=_FACTORS[-1])
        for name, decode in (("decode", source.decode), ("decode_resized", small)):
            _require_data_error(subject, f"{name} of an unreadable {field}", decode, broken)


def _spoilt(file: Path | bytes) -> Path | bytes:
    """A missing file, or bytes that are not a picture."""
    return b"not a picture" if isinstance(file, bytes) else file.with_name("no-such-file.png")


def _check_classes(subject: Subject, classes: Classes) -> None:
    names, palette = classes.names, classes.palette
    if not 1 <= len(names) <= IGNORE_INDEX:
        subject.fail(f"it has {len(names)} classes; there must be from 1 to {IGNORE_INDEX}")
    if len(set(names)) < len(names):
        subject.fail(f"the classes are named {names}; each name must occur once")
    if len(palette) != len(names) or not all(
        len(color) == 3 and all(0 <= part <= 255 for part in color) for color in palette
    ):
        subject.fail(
            f"the palette is {palette}; it must have one RGB color, 0 to 255, for each of the "
            f"{len(names)} classes"
        )


def _check_type(subject: Subject, example: Any, name: str) -> None:
    if not isinstance(example, Example):
        subject.fail(f"it returns a {type(example).__name__}; it must be an fcn_jax.api.Example")
    if example.id != name:
        subject.fail(f"it returns the id '{example.id}'; it must be '{name}'")


def _check_example(subject: Subject, example: Example, name: str, num_classes: int) -> None:
    _check_type(subject, example, name)
    image, mask = example.image, example.mask
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        subject.fail(f"the image is {_kind(image)}; it must be uint8[H, W, 3]")
    if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
        subject.fail(
            f"the mask is {_kind(mask)}, the image {list(image.shape)}; the mask must be "
            "uint8[H, W] of the same size"
        )
    labels = np.unique(mask)
    wrong = labels[(labels >= num_classes) & (labels != IGNORE_INDEX)]
    if wrong.size:
        subject.fail(
            f"the mask has labels {listing(map(str, wrong))}; allowed are 0 to {num_classes - 1} "
            f"and {IGNORE_INDEX} (ignored)"
        )


def _check_resized(subject: Subject, example: Example, full: Example, factor: float) -> None:
    """Compare an example decoded at another size with the full one, resized."""
    _check_type(subject, example, full.id)
    expected = resize(full, factor)
    if example.image.dtype != np.uint8 or example.image.shape != expected.image.shape:
        subject.fail(f"the image is {_kind(example.image)}; it must be {_kind(expected.image)}")
    if not np.array_equal(example.mask, expected.mask):
        subject.fail("the mask differs from the full mask, resized")
    off = float(cv2.absdiff(example.image, expected.image).mean())
    allowed = 0.0
    if factor <= 0.5:
        # The more detail is averaged out, the more the result depends on the method: by up to 2 and
        # 0.6 of the detail on stripes and checkerboards of 1 to 63 pixels. The detail is measured
        # as the mean distance of pixels from the mean of the window that becomes one pixel.
        window = math.ceil(1 / factor)
        blurred = cv2.blur(full.image, (window, window))
        allowed = 2 + 0.75 * float(cv2.absdiff(full.image, blurred).mean())
    if off > allowed:
        subject.fail(
            f"the image differs from the full image, resized, by {off:.1f} of 255 on average; "
            f"allowed are {allowed:.1f}"
        )


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"
