"""The values of images: scaled to 8 bits, or as stored.

The brightness of a stored 16-bit number is uncertain: cameras of 10, 12 and 14 bits write their
values into 16 bits unchanged. The range of stored numbers that become 0 and 255 is, in this order,
the setting `data.value_range`; the range that the file declares; an assumption from the largest
value of all images of a dataset. With the settings `model.mean` and `model.std`, which are in units
of the stored values, no image is scaled (`Stored`).
"""

from __future__ import annotations

import dataclasses
import functools
import mmap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

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


Dtype = Literal["uint8", "float32"]
"""Types of images in batches."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """Images keep their stored values.

    Attributes:
        dtype: of all images: "uint8" if they all have 8 bits, otherwise "float32".
    """

    dtype: Dtype = "float32"


Scaling = Range | Assumed | Stored
"""How the values of images become those of batches."""


def dtype_of(value_range: Scaling | None) -> Dtype:
    """The type of the images that a scaling makes."""
    return value_range.dtype if isinstance(value_range, Stored) else "uint8"


def scaled(pixels: np.ndarray | Wide, value_range: Scaling | None, name: str) -> np.ndarray:
    """The values of an image: scaled to 8 bits (`to_u8`), or as stored.

    Args:
        pixels: u8 of 8 bits, which no range changes, or an image of more bits.
        value_range: the scaling; see `to_u8` for None.
        name: the name of the image in an error.

    Returns:
        u8, or the type of a `Stored`.

    Raises:
        DataError: as for `to_u8`; or a `Stored` of 8 bits does not hold the values.
    """
    if not isinstance(value_range, Stored):
        return to_u8(pixels, value_range, name) if isinstance(pixels, Wide) else pixels
    if value_range.dtype == "uint8" and isinstance(pixels, Wide):
        raise DataError(
            f"{name}: the image has {pixels.values.dtype.name} values, and the training images had "
            "8 bits (uint8), which model.mean and model.std refer to; save it with 8 bits"
        )
    values = pixels.values if isinstance(pixels, Wide) else pixels
    _check_finite(values, name)
    return values.astype(value_range.dtype, copy=False)


def stored(sources: Iterable[Source]) -> Stored:
    """The common type of the images of splits that keep their stored values.

    The first bytes of all files are read. Of sources in memory, and of those that read images in
    their own way, the first image decides.
    """

    def is_wide(source: Source) -> bool:
        if not _reads_ranges(source):
            return source.decode(source[0]).image.dtype != np.uint8
        if isinstance(source[0].image, Path):
            return any(_may_be_wide(record.image) for record in source)
        return _may_be_wide(source[0].image)

    return Stored("float32" if any(map(is_wide, sources)) else "uint8")


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
    channels: int = 3,
) -> Assumed:
    """Assume ranges from all images of a dataset, so that they are scaled alike.

    Only images of more than 8 bits are decoded, on threads; of the others the first bytes are read.
    Missing and damaged files are skipped: their error is raised when they are decoded.

    Args:
        images: files, or their contents.
        progress: called with the number of images that are done, and the number of all.
        skip_faulty: whether to skip images with values outside every range, too.
        channels: as for `fcn_jax.data.decode.read_image`.

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
    look = functools.partial(_look, channels=channels)
    results = on_threads(look, candidates, lambda done, _: progress(others + done, len(sources)))
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


def to_json(value_range: Scaling) -> list[float] | dict[str, Any] | None:
    """A scaling as a checkpoint records it, so that prediction scales images as training did."""
    if isinstance(value_range, Stored):
        return {"stored": value_range.dtype}
    if isinstance(value_range, tuple):
        return list(value_range)
    ranges = {"integers": value_range.integers, "floats": value_range.floats}
    listed = {kind: list(found) if found else None for kind, found in ranges.items()}
    return listed if any(listed.values()) else None


def from_json(recorded: Any) -> Scaling | None:
    """The scaling that `to_json` recorded; None if there is no record.

    Raises:
        ValueError: `recorded` is not such a record.
    """
    if isinstance(recorded, dict) and "stored" in recorded:
        if recorded["stored"] not in get_args(Dtype):
            raise ValueError(f"{recorded['stored']!r} is not one of {get_args(Dtype)}")
        return Stored(recorded["stored"])
    if isinstance(recorded, dict):
        return Assumed(_pair(recorded.get("integers")), _pair(recorded.get("floats")))
    return _pair(recorded)


def given_or_recorded(given: Range | None, recorded: Scaling | None) -> Scaling | None:
    """The option `--value-range`, or else what a checkpoint records.

    Raises:
        ConfigError: the option is given, and the model takes stored values.
    """
    if given and isinstance(recorded, Stored):
        raise ConfigError(
            "--value-range: the model takes stored values, which model.mean and model.std of its "
            "training refer to; leave the option out"
        )
    return given or recorded


def _pair(values: Any) -> Range | None:
    if values is None:
        return None
    try:
        low, high = map(float, values)
    except TypeError as error:
        raise ValueError(f"{values!r} is not [low, high]") from error
    return low, high


def _reads_ranges(source: Source) -> bool:
    """Whether a source reads images as `fcn_jax.data.decode.decode_record` does."""
    return dataclasses.is_dataclass(source) and hasattr(source, "value_range")


def with_range(source: Source, value_range: Scaling | None, channels: int = 3) -> Source:
    """A source whose images have other values and channels.

    Args:
        source: a dataset's split. If it is a dataclass with the fields `value_range` and, for other
            than three channels, `channels`, the result is a copy with those fields set. Other
            sources read images in their own way, and their first image is checked.
        value_range: the setting, the assumption, or `Stored`.
        channels: the number of channels of the images.

    Raises:
        ConfigError: `value_range` is a setting, and the source has no such field.
        DataError: the first image of such a source has another number of channels.
    """
    changes = {"value_range": value_range} | ({"channels": channels} if channels != 3 else {})
    if dataclasses.is_dataclass(source) and all(hasattr(source, name) for name in changes):
        changed: Source = dataclasses.replace(source, **changes)
        return changed
    if isinstance(value_range, tuple):
        raise ConfigError(
            "data.value_range is set, but the dataset scales its images by a rule of its own; "
            "remove the setting"
        )
    if channels != 3:
        first = source.decode(source[0])
        if first.image.shape[2] != channels:
            raise DataError(
                f"image {first.id} has {first.image.shape[2]} channels, but the model takes "
                f"{channels}; set model.in_channels"
            )
    return source


def _look(image: Path | bytes, channels: int) -> tuple[Wide, float] | str | None:
    """Decode an image that may be wide.

    Returns:
        For a wide image that declares no range, the image without its pixels, and its largest
        value; or the problem with its values. None for other images.
    """
    name = name_of(image)
    try:
        wide, _ = formats.decode(read_bytes(image, name), name, channels=channels)
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
            if head[:2] not in (b"II", b"MM", b"\x93N"):
                return formats.may_be_wide(head, name)
            # The tags of a TIFF may lie anywhere in it, and the header of a .npy file is longer.
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
            f"{name}: the image holds negative values ({smallest:g} to {largest:g}); {_ADVICE}; or "
            "keep the stored values with model.mean and model.std, in their units"
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
