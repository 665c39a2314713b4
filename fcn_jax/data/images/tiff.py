"""TIFF files: the tags of the first page.

OpenCV reads few kinds of TIFF correctly (it multiplies colors by alpha, shifts samples of 12 bits,
and returns uninitialized memory for planes of 16 bits), and Pillow reduces colors of 16 bits to 8.
So the tags are read here, and the samples in `fcn_jax.data.images.tiff_samples`; libtiff, through
Pillow, only undoes the compression, which is the same for every kind.

Reference: Adobe, "TIFF Revision 6.0", 1992.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from typing import Any

import numpy as np

from fcn_jax.data.images import orientation
from fcn_jax.data.images.limits import check_size, damaged
from fcn_jax.errors import DamagedError, DataError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, INDEXED, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
"""What the samples mean: values of the tag PhotometricInterpretation."""

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
"""Values of the tag SampleFormat."""


class Tag(enum.IntEnum):
    """The numbers of the tags that are read or written."""

    SUBFILE = 254
    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    FILL_ORDER = 266
    STRIP_OFFSETS = 273
    SAMPLES = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTES = 279
    LARGEST = 281
    PLANAR = 284
    T4_OPTIONS = 292
    PREDICTOR = 317
    COLORS = 320
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILE_OFFSETS = 324
    TILE_BYTES = 325
    EXTRA = 338
    FORMAT = 339
    JPEG_TABLES = 347


_LOSSY = (6, 7, 34887, 34892, 50001, 50002, 52546, 33003, 33005, 34712)
"""Compressions that may change values: JPEG (two numbers), LERC, lossy DNG, WebP, JPEG XL (two),
JPEG 2000 (three)."""

_MOST_PAGES = 1000

_TYPES = {
    1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q",
}  # fmt: skip
"""Field type -> the format of `struct`, for whole numbers and for bytes of any meaning."""


@dataclasses.dataclass(frozen=True)
class Tiff:
    """The tags of the first page of a TIFF.

    Attributes:
        name: the name of the file in an error.
        order: byte order, "<" or ">".
        tags: tag -> its numbers.
    """

    name: str
    order: str
    tags: dict[int, tuple[Any, ...]]

    def tag(self, number: int, default: int) -> int:
        """The first number of a tag."""
        values = self.tags.get(number)
        return int(values[0]) if values else default

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as stored."""
        return self.tag(Tag.HEIGHT, 0), self.tag(Tag.WIDTH, 0)

    @property
    def orientation(self) -> int:
        """EXIF orientation, 1 to 8."""
        return orientation.checked(self.tag(orientation.TAG, 1))

    @property
    def bits(self) -> int:
        """Bits of a sample."""
        return self.tag(Tag.BITS, 1)

    @property
    def channels(self) -> int:
        """Samples of a pixel."""
        return self.tag(Tag.SAMPLES, 1)

    @property
    def color_channels(self) -> int:
        """Samples of a pixel without its opacity: 1 (gray or indexed), 3 (RGB) or 4 (CMYK).

        0 if the number of samples and their meaning contradict each other, or are not known.
        """
        photometric, channels = self.photometric, self.channels
        if photometric == YCBCR and not self.is_lossy:
            return 0
        # Many writers call the three channels of RGB gray.
        known = {
            WHITE_IS_ZERO: (1,), BLACK_IS_ZERO: (1, 3), INDEXED: (1,), CMYK: (4,), YCBCR: (3,),
        }  # fmt: skip
        if photometric == RGB:
            return 3 if channels in (3, 4) else 0
        alpha = self.tags.get(Tag.EXTRA, (0,))[-1] in (1, 2)
        return next((n for n in known.get(photometric, ()) if channels in (n, n + alpha)), 0)

    @property
    def format(self) -> int:
        """The kind of a sample: `UNSIGNED`, `SIGNED`, `FLOAT`, or an unknown number."""
        kind = self.tag(Tag.FORMAT, UNSIGNED)
        return UNSIGNED if kind == 4 else kind  # 4 is undefined data

    @property
    def photometric(self) -> int:
        """The meaning of the samples, such as `RGB`."""
        return self.tag(Tag.PHOTOMETRIC, BLACK_IS_ZERO)

    @property
    def compression(self) -> int:
        """The number of the compression; 1 is none."""
        return self.tag(Tag.COMPRESSION, 1)

    @property
    def is_lossy(self) -> bool:
        """Whether the compression may change values."""
        return self.compression in _LOSSY

    @property
    def is_wide(self) -> bool:
        """Whether samples may lie outside 0 to 255."""
        return self.bits > 8 or self.format != UNSIGNED

    @property
    def declared_bits(self) -> int:
        """The bits that the values use, if the file declares fewer than a sample has; or 0."""
        if self.format != UNSIGNED or self.bits < 8:
            return 0
        largest = self.tag(Tag.LARGEST, 0)
        if 255 < largest < 2**self.bits - 1:
            return largest.bit_length()
        return self.bits if self.bits % 8 else 0

    @property
    def colors(self) -> np.ndarray:
        """u8[N,3], the RGB color of each index."""
        table = np.array(self.tags.get(Tag.COLORS, ()), np.uint16)
        table = table[: table.size // 3 * 3].reshape(3, -1).T
        # The standard's colors have 16 bits; some writers leave the upper 8 empty.
        return (table >> 8 if table.max(initial=0) > 255 else table).astype(np.uint8)

    def damaged(self, reason: str) -> DamagedError:
        """The error for a file that is damaged for a reason."""
        return damaged("TIFF", self.name, reason)

    def undecodable(self, reason: str, advice: str) -> DataError:
        """The error for a file of a kind that is not decoded, with advice."""
        return DataError(f"{self.name}: a kind of TIFF that cannot be decoded ({reason}); {advice}")


def parse(data: Any, name: str) -> Tiff:
    """Read the tags of the first page.

    Args:
        data: the file: bytes, or an object that gives bytes when it is sliced.
        name: the name of the file in an error.

    Raises:
        DamagedError: the tags are cut off or contradict each other.
        DataError: the picture is too large, or the file has several pages of one size.
    """
    try:
        found, after = _page(data, name, None)
        others = 0
        while after and others < _MOST_PAGES:
            page, after = _page(data, name, after)
            # Other pages that are allowed are smaller copies of the first, and its transparency.
            others += page.size == found.size and not page.tag(Tag.SUBFILE, 0) & 5
    except (struct.error, IndexError) as error:
        raise damaged("TIFF", name, "its table of tags is cut off") from error
    if others:
        raise DataError(
            f"{name}: the TIFF has several pages of one size; save each as a file of its own"
        )
    if any(len(set(found.tags.get(tag, (1,)))) > 1 for tag in (Tag.BITS, Tag.FORMAT)):
        raise DataError(
            f"{name}: the TIFF's channels differ in their bits or kind; save it with equal channels"
        )
    check_size(*found.size, name)
    return found


def pages(data: Any, name: str) -> list[Tiff]:
    """Read the tags of all pages, without smaller copies and masks of transparency.

    Raises:
        DamagedError: the tags are cut off or contradict each other.
        DataError: a page is too large, or there are too many.
    """
    found = list[Tiff]()
    after: int | None = None
    try:
        while after != 0 and len(found) <= _MOST_PAGES:
            page, after = _page(data, name, after)
            if not page.tag(Tag.SUBFILE, 0) & 5:
                check_size(*page.size, name)
                found.append(page)
    except (struct.error, IndexError) as error:
        raise damaged("TIFF", name, "its table of tags is cut off") from error
    if not 0 < len(found) <= _MOST_PAGES:
        raise DataError(f"{name}: the TIFF has {len(found)} pages; expected 1 to {_MOST_PAGES}")
    return found


def _page(data: Any, name: str, at: int | None) -> tuple[Tiff, int]:
    """A page, and the position of the next page (0: there is none).

    Args:
        data: the file.
        name: the name of the file in an error.
        at: the position of the page's tags; None for the first page.
    """
    order = "<" if data[:2] == b"II" else ">"

    def read(form: str, at: int) -> tuple[Any, ...]:
        size = struct.calcsize(order + form)
        return struct.unpack(order + form, data[at : at + size])

    big = read("H", 2)[0] == 43
    offset_form, count_form, entry_form, inline = (
        ("Q", "Q", "HHQ", 8) if big else ("I", "H", "HHI", 4)
    )
    if at is None:
        (at,) = read(offset_form, 8 if big else 4)
    (count,) = read(count_form, at)
    at += struct.calcsize(count_form)
    if not 0 < count < 4096:
        raise damaged("TIFF", name, f"it claims {count} tags")
    tags: dict[int, tuple[Any, ...]] = {}
    for _ in range(count):
        number, kind, length = read(entry_form, at)
        where = at + struct.calcsize("=" + entry_form)
        at = where + inline
        if kind not in _TYPES:
            continue
        size = struct.calcsize(_TYPES[kind]) * length
        if size > len(data):
            raise damaged("TIFF", name, f"its tag {number} is cut off")
        if size > inline:
            (where,) = read(offset_form, where)
        tags.setdefault(number, read(f"{length}{_TYPES[kind]}", where))
    return Tiff(name, order, tags), read(offset_form, at)[0]
