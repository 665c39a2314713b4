"""Images of more than 8 bits to 8 bits: which stored numbers become 0 and 255.

A stored 16-bit number says little about how bright it is: cameras of 10, 12 and 14 bits write their
values into 16 bits as they are. The range is, in this order, the setting `data.value_range`; what
the file declares; what is assumed from the largest value of all the images of a dataset.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data.damage import KeptSource
from fcn_jax.data.images import formats
from fcn_jax.data.images.formats import Wide
from fcn_jax.errors import ConfigError, DataError, listing
from fcn_jax.plugins.api import Source

Range = tuple[float, float]
"""(low, high): the stored numbers that become 0 and 255."""

_INTEGERS = tuple(2.0**bits - 1 for bits in (8, 10, 12, 14, 16))
_FLOATS = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
_ADVICE = "set data.value_range = [low, high] (predict and eval: --value-range LOW HIGH), the stored numbers that mean black and white"
_MAX_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What is assumed of the images that have more than 8 bits and do not declare their range.

    Attributes:
        integers: range of whole numbers; None where there are no such images.
        floats: range of floating point numbers; None where there are no such images.
        largest: largest value of all of them.
        count: how many they are.
        note: a line that says what is assumed; None where nothing is.
    """

    integers: Range | None = None
    floats: Range | None = None
    largest: float = 0.0
    count: int = 0
    note: str | None = None


def to_u8(wide: Wide, value_range: Range | Assumed | None, name: str) -> np.ndarray:
    """Scale an image to 8 bits: linearly, rounded, clipped.

    Args:
        wide: the image.
        value_range: the setting; or what is assumed where the file declares nothing; None assumes
            from this image alone.
        name: what to call it in an error.

    Returns:
        u8 of the image's shape.

    Raises:
        DataError: a value is not finite; or without a setting, one is negative or larger than what
            is assumed.
    """
    values = wide.values
    if isinstance(value_range, tuple):
        low, high = value_range
        _check_finite(values, name)
    else:
        low, high = wide.declared or _assumed_of(wide, value_range, name)
    # A table of all 16-bit numbers takes less time than the numbers of most images.
    table = _scale(np.arange(65536), low, high) if values.dtype == np.uint16 else None
    result = _scale(values, low, high) if table is None else table[values]
    return 255 - result if wide.inverted else result


def assumed(
    images: Iterable[Path | bytes],
    *,
    progress: Callable[[int, int], None] | None = None,
    skip_faulty: bool = False,
) -> Assumed:
    """Decide over the images of a dataset, so that all are scaled alike.

    Only images of more than 8 bits are decoded, on threads; of the others the first bytes are read.
    Files that are missing or damaged are passed over: whoever decodes them reports them.

    Args:
        images: files, or their contents.
        progress: called with the number of images that are done and of all.
        skip_faulty: pass over images for which no range is assumed, too.

    Returns:
        What `fcn_jax.data.decode.read_image` and `decode_record` take as `value_range`.

    Raises:
        DataError: there are values that no range is assumed for: negative ones, or ones over 65535
            or not finite. All such images are counted, and the first dozen named.
    """
    sources = list(images)
    wide = []
    for seen, image in enumerate(sources, 1):
        if _may_be_wide(image):
            wide.append(image)
        elif progress:
            progress(seen - len(wide), len(sources))
    found: list[tuple[Wide, float]] = []
    faults = []
    with concurrent.futures.ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for done, result in enumerate(pool.map(_look, wide), len(sources) - len(wide) + 1):
            if isinstance(result, str):
                faults.append(result)
            elif result is not None:
                found.append(result)
            if progress:
                progress(done, len(sources))
    if faults and not skip_faulty:
        raise DataError(
            f"{len(faults)} of {len(sources)} images cannot be scaled to 8 bits: {listing(faults)}"
        )
    notes, ranges = [], {}
    for kind in ("integers", "floats"):
        of_kind = [
            (wide.values.dtype.itemsize * 8, largest)
            for wide, largest in found
            if wide.is_float == (kind == "floats")
        ]
        if of_kind:
            largest = max(value for _, value in of_kind)
            ranges[kind] = _smallest(largest, kind == "floats", "images")
            notes.append(
                _note(
                    kind, sorted({bits for bits, _ in of_kind}), len(of_kind), largest, ranges[kind]
                )
            )
    note = "; ".join(notes) or None
    return Assumed(
        **ranges,
        largest=max((value for _, value in found), default=0.0),
        count=len(found),
        note=note,
    )


def to_json(value_range: Range | Assumed) -> list[float] | dict[str, list[float] | None] | None:
    """What a checkpoint records of a range, so that prediction scales images as training did; the inverse of `from_json`."""
    if isinstance(value_range, tuple):
        return list(value_range)
    if not value_range.count:
        return None
    ranges = {"integers": value_range.integers, "floats": value_range.floats}
    return {kind: list(found) if found else None for kind, found in ranges.items()}


def from_json(recorded: Any) -> Range | Assumed | None:
    """The range that `to_json` recorded; None where there is no record.

    Raises:
        ValueError: it is not such a record.
    """
    if recorded is None:
        return None
    if isinstance(recorded, dict):
        found = {
            kind: _pair(recorded[kind]) if recorded.get(kind) is not None else None
            for kind in ("integers", "floats")
        }
        return Assumed(found["integers"], found["floats"])
    return _pair(recorded)


def _pair(values: Any) -> Range:
    try:
        low, high = map(float, values)
    except TypeError as error:
        raise ValueError(f"{values!r} is not [low, high]") from error
    return low, high


def with_range(source: Source, value_range: Range | Assumed | None) -> Source:
    """A source that scales its images by a range.

    Args:
        source: a dataset's split. Where it is a dataclass with a field `value_range`, a copy with
            that field set is returned.
        value_range: the setting, or what is assumed.

    Raises:
        ConfigError: it is a setting, and the source has no such field.
    """
    if isinstance(source, KeptSource):
        return dataclasses.replace(source, source=with_range(source.source, value_range))
    if dataclasses.is_dataclass(source) and any(
        field.name == "value_range" for field in dataclasses.fields(source)
    ):
        changed: Source = dataclasses.replace(source, value_range=value_range)
        return changed
    if isinstance(value_range, tuple):
        raise ConfigError(
            "data.value_range is set, but the dataset scales its images by a rule of its own; leave the setting out"
        )
    return source


def _look(image: Path | bytes) -> tuple[Wide, float] | str | None:
    """What is known of an image that may be wide.

    Returns:
        For a wide image that declares no range, the image without its pixels, and its largest
        value; what is wrong with its values; None for others.
    """
    name = _name(image)
    try:
        wide, _ = formats.decode(image if isinstance(image, bytes) else image.read_bytes(), name)
    except (DataError, OSError):
        return None
    if not isinstance(wide, Wide) or wide.declared:
        return None
    try:
        largest = _largest(wide.values, name)
        _smallest(largest, wide.is_float, name)
    except DataError as error:
        return str(error)
    return Wide(wide.values[:0]), largest


def _may_be_wide(image: Path | bytes) -> bool:
    name = _name(image)
    try:
        if isinstance(image, bytes):
            return formats.may_be_wide(image, name)
        with image.open("rb", buffering=0) as file:
            head = file.read(25)
            if head[:2] not in (b"II", b"MM"):
                return formats.may_be_wide(head, name)
            # The tags of a TIFF may lie anywhere in it.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
                return formats.may_be_wide(contents, name)
    except (DataError, OSError):
        return False


def _name(image: Path | bytes) -> str:
    return str(image) if isinstance(image, Path) else f"{len(image)} bytes in memory"


def _note(kind: str, bits: list[int], count: int, largest: float, assumed_range: Range) -> str:
    what = "floating point values" if kind == "floats" else f"{' or '.join(map(str, bits))} bits"
    high = assumed_range[1]
    read = (
        f"0 to {high:g}" if kind == "floats" else f"{int(high).bit_length()} bits (0 to {high:.0f})"
    )
    return f"{count} image{' has' if count == 1 else 's have'} {what}: largest value {largest:g}, read as {read}"


def _assumed_of(wide: Wide, decided: Assumed | None, name: str) -> Range:
    largest = _largest(wide.values, name)
    known = (decided.floats if wide.is_float else decided.integers) if decided else None
    if known is None:
        return _smallest(largest, wide.is_float, name)
    if largest > known[1]:
        raise DataError(
            f"{name}: the image's largest value is {largest:g}, but the dataset's range is 0 to {known[1]:g}; {_ADVICE}"
        )
    return known


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip(
        np.rint((values.astype(np.float64) - low) * (255 / (high - low))), 0, 255
    ).astype(np.uint8)


def _check_finite(values: np.ndarray, name: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(
            f"{name}: the image holds values that are not finite (NaN or infinity); replace them by numbers"
        )


def _largest(values: np.ndarray, name: str) -> float:
    _check_finite(values, name)
    smallest, largest = float(values.min()), float(values.max())
    if smallest < 0:
        raise DataError(
            f"{name}: the image holds negative values ({smallest:g} to {largest:g}); {_ADVICE}"
        )
    return largest


def _smallest(largest: float, is_float: bool, name: str) -> Range:
    """The smallest usual range that holds a value."""
    for high in _FLOATS if is_float else _INTEGERS:
        if largest <= high:
            return 0.0, high
    raise DataError(
        f"{name}: the image's largest value is {largest:g}, more than 16 bits hold; {_ADVICE}"
    )
