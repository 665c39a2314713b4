"""Scaling of images of more than 8 bits to 8 bits: the stored numbers that become 0 and 255.

The brightness of a stored 16-bit number is uncertain: cameras of 10, 12 and 14 bits write their
values into 16 bits unchanged. The range is, in this order, the setting `data.value_range`; the
range that the file declares; an assumption from the largest value of all images of a dataset.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data.contents import name_of, read_bytes
from fcn_jax.data.images import formats
from fcn_jax.data.images.formats import Wide
from fcn_jax.data.source import Source
from fcn_jax.data.threads import on_threads
from fcn_jax.errors import ConfigError, DataError, listing

Range = tuple[float, float]
"""(low, high): the stored numbers that become 0 and 255."""

_INTEGERS = tuple(2.0**bits - 1 for bits in (8, 10, 12, 14, 16))
_FLOATS = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
_ADVICE = (
    "set data.value_range = [low, high] (predict and eval: --value-range LOW HIGH), the stored "
    "values that mean black and white"
)


@dataclasses.dataclass(frozen=True)
class Assumed:
    """The assumed ranges of images that have more than 8 bits and do not declare their range.

    Attributes:
        integers: range of whole numbers; None if there are no such images.
        floats: range of floating point numbers; None if there are no such images.
        note: a line that names the assumption; None if there is none.
    """

    integers: Range | None = None
    floats: Range | None = None
    note: str | None = None


def to_u8(wide: Wide, value_range: Range | Assumed | None, name: str) -> np.ndarray:
    """Scale an image to 8 bits: linearly, rounded, clipped.

    Args:
        wide: the image.
        value_range: the setting; or the assumption for files that declare no range. None makes an
            assumption from this image alone.
        name: the name of the image in an error.

    Returns:
        u8 of the image's shape.

    Raises:
        DataError: a value is not finite; or without a setting, a value is negative or larger than
            the assumed range.
    """
    values = wide.values
    if isinstance(value_range, tuple):
        low, high = value_range
        _check_finite(values, name)
    else:
        low, high = wide.declared or _assumed_of(wide, value_range, name)
    # Scaling a table of all 16-bit numbers is faster than scaling most images.
    table = _scale(np.arange(65536), low, high) if values.dtype == np.uint16 else None
    result = _scale(values, low, high) if table is None else table[values]
    return 255 - result if wide.inverted else result


def assumed(
    images: Iterable[Path | bytes],
    *,
    progress: Callable[[int, int], object] = lambda *_: None,
    skip_faulty: bool = False,
) -> Assumed:
    """Assume ranges from all images of a dataset, so that they are scaled alike.

    Only images of more than 8 bits are decoded, on threads; of the others the first bytes are read.
    Missing and damaged files are skipped: their error is raised when they are decoded.

    Args:
        images: files, or their contents.
        progress: called with the number of images that are done, and the number of all.
        skip_faulty: whether to skip images with values outside every range, too.

    Returns:
        The `value_range` for `fcn_jax.data.decode.read_image` and `decode_record`.

    Raises:
        DataError: some values are negative, over 65535 or not finite. All such images are counted,
            and the first dozen named.
    """
    sources = list(images)
    candidates = []
    for seen, image in enumerate(sources, 1):
        if _may_be_wide(image):
            candidates.append(image)
        else:
            progress(seen - len(candidates), len(sources))
    others = len(sources) - len(candidates)
    results = on_threads(_look, candidates, lambda done, _: progress(others + done, len(sources)))
    faults = [result for result in results if isinstance(result, str)]
    found = [result for result in results if isinstance(result, tuple)]
    if faults and not skip_faulty:
        raise DataError(
            f"{len(faults)} of {len(sources)} images cannot be scaled to 8 bits: {listing(faults)}"
        )
    notes, ranges = [], {}
    for kind in ("integers", "floats"):
        of_kind = [(wide, value) for wide, value in found if wide.is_float == (kind == "floats")]
        if of_kind:
            largest = max(value for _, value in of_kind)
            ranges[kind] = _smallest(largest, kind == "floats", "images")
            bits = sorted({wide.values.dtype.itemsize * 8 for wide, _ in of_kind})
            notes.append(_note(kind, bits, len(of_kind), largest, ranges[kind]))
    return Assumed(**ranges, note="; ".join(notes) or None)


def to_json(value_range: Range | Assumed) -> list[float] | dict[str, list[float] | None] | None:
    """A range as a checkpoint records it, so that prediction scales images as training did."""
    if isinstance(value_range, tuple):
        return list(value_range)
    ranges = {"integers": value_range.integers, "floats": value_range.floats}
    listed = {kind: list(found) if found else None for kind, found in ranges.items()}
    return listed if any(listed.values()) else None


def from_json(recorded: Any) -> Range | Assumed | None:
    """The range that `to_json` recorded; None if there is no record.

    Raises:
        ValueError: `recorded` is not such a record.
    """
    if isinstance(recorded, dict):
        return Assumed(_pair(recorded.get("integers")), _pair(recorded.get("floats")))
    return _pair(recorded)


def _pair(values: Any) -> Range | None:
    if values is None:
        return None
    try:
        low, high = map(float, values)
    except TypeError as error:
        raise ValueError(f"{values!r} is not [low, high]") from error
    return low, high


def with_range(source: Source, value_range: Range | Assumed | None) -> Source:
    """A source that scales its images by a range.

    Args:
        source: a dataset's split. If it is a dataclass with a field `value_range`, the result is a
            copy with that field set.
        value_range: the setting, or the assumption.

    Raises:
        ConfigError: `value_range` is a setting, and the source has no such field.
    """
    if dataclasses.is_dataclass(source) and hasattr(source, "value_range"):
        changed: Source = dataclasses.replace(source, value_range=value_range)
        return changed
    if isinstance(value_range, tuple):
        raise ConfigError(
            "data.value_range is set, but the dataset scales its images by a rule of its own; "
            "remove the setting"
        )
    return source


def _look(image: Path | bytes) -> tuple[Wide, float] | str | None:
    """Decode an image that may be wide.

    Returns:
        For a wide image that declares no range, the image without its pixels, and its largest
        value; or the problem with its values. None for other images.
    """
    name = name_of(image)
    try:
        wide, _ = formats.decode(read_bytes(image, name), name)
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
    name = name_of(image)
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


def _note(kind: str, bits: list[int], count: int, largest: float, assumed_range: Range) -> str:
    high = assumed_range[1]
    what, read = "floating point values", f"0 to {high:g}"
    if kind == "integers":
        what = f"{' or '.join(map(str, bits))} bits"
        read = f"{int(high).bit_length()} bits (0 to {high:.0f})"
    images = "image has" if count == 1 else "images have"
    return f"{count} {images} {what}: largest value {largest:g}, read as {read}"


def _assumed_of(wide: Wide, decided: Assumed | None, name: str) -> Range:
    largest = _largest(wide.values, name)
    known = (decided.floats if wide.is_float else decided.integers) if decided else None
    if known is None:
        return _smallest(largest, wide.is_float, name)
    if largest > known[1]:
        raise DataError(
            f"{name}: the image's largest value is {largest:g}, but the dataset's range is 0 to "
            f"{known[1]:g}; {_ADVICE}"
        )
    return known


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _check_finite(values: np.ndarray, name: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(
            f"{name}: the image holds values that are not finite (NaN or infinity); replace them "
            "by numbers"
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
