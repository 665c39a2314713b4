"""TIFF files to their stored numbers, of any bit depth.

OpenCV reads few of the kinds of TIFF right (it multiplies colors by alpha, shifts samples of 12
bits, returns memory that it never wrote for planes of 16 bits), and Pillow cuts colors of 16 bits
down to 8. So the tags are read here, and so are the samples: libtiff, through Pillow, only undoes
the compression, which is the same for every kind.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from fcn_jax.data.images import jpeg, orientation
from fcn_jax.data.images.limits import check_size
from fcn_jax.errors import DamagedError, DataError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, INDEXED, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
"""What the samples mean: values of the tag PhotometricInterpretation."""

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
"""Values of the tag SampleFormat."""

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = (
    254,
    256,
    257,
    258,
    259,
    262,
    266,
)
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 277, 278, 279
_LARGEST, _PLANAR, _PREDICTOR, _COLORS = 281, 284, 317, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_EXTRA, _FORMAT = 338, 339

_PLAIN = 1
_DEFLATE = (8, 32946)
_BYTE_STREAMS = (_PLAIN, *_DEFLATE, 5, 32773, 34925, 50000)
"""Compressions of bytes, whatever they mean: none, deflate, LZW, PackBits, LZMA, Zstandard."""

_FAX = (2, 3, 4)
_JPEG = 7
_T4_OPTIONS = 292
_JPEG_TABLES = 347

_LOSSY = (6, 7, 34887, 34892, 50001, 50002, 52546, 33003, 33005, 34712)
"""Compressions that may change values: JPEG (two numbers), LERC, lossy DNG, WebP, JPEG XL (two),
JPEG 2000 (three)."""

_MOST_BYTES = 2**31
"""Of all samples together. A few bytes of compressed data can claim to hold any number."""

_MOST_PAGES = 1000

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the other order."""

_TYPES = {
    1: "B",
    7: "B",
    3: "H",
    4: "I",
    6: "b",
    8: "h",
    9: "i",
    13: "I",
    16: "Q",
    17: "q",
    18: "Q",
}
"""Field types of whole numbers and of bytes without a meaning of their own, as `struct` names
them."""


@dataclasses.dataclass(frozen=True)
class Tiff:
    """The first page of a TIFF: what its tags say.

    Attributes:
        name: what to call it in an error.
        order: byte order, "<" or ">".
        tags: the numbers of each tag.
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
        return self.tag(_HEIGHT, 0), self.tag(_WIDTH, 0)

    @property
    def orientation(self) -> int:
        """EXIF orientation, 1 to 8."""
        return orientation.checked(self.tag(orientation.TAG, 1))

    @property
    def bits(self) -> int:
        """Bits of a sample."""
        return self.tag(_BITS, 1)

    @property
    def channels(self) -> int:
        """Samples of a pixel."""
        return self.tag(_SAMPLES, 1)

    @property
    def has_alpha(self) -> bool:
        """Whether the last sample of a pixel is its opacity."""
        return self.tags.get(_EXTRA, (0,))[-1] in (1, 2)

    @property
    def format(self) -> int:
        """What a sample is: `UNSIGNED`, `SIGNED`, `FLOAT`, or a number that is not known."""
        kind = self.tag(_FORMAT, UNSIGNED)
        return UNSIGNED if kind == 4 else kind  # 4 is undefined data

    @property
    def photometric(self) -> int:
        """What the samples mean, such as `RGB`."""
        return self.tag(_PHOTOMETRIC, BLACK_IS_ZERO)

    @property
    def is_lossy(self) -> bool:
        """Whether the compression may change values."""
        return self.tag(_COMPRESSION, _PLAIN) in _LOSSY

    @property
    def is_wide(self) -> bool:
        """Whether samples may lie outside 0 to 255."""
        return self.bits > 8 or self.format != UNSIGNED

    @property
    def declared_bits(self) -> int:
        """Bits that the values take, if the file says that they are fewer than a sample's; or 0."""
        if self.format != UNSIGNED or self.bits < 8:
            return 0
        largest = self.tag(_LARGEST, 0)
        if 255 < largest < 2**self.bits - 1:
            return largest.bit_length()
        return self.bits if self.bits % 8 else 0

    @property
    def colors(self) -> np.ndarray:
        """u8[N,3], the RGB color of each index."""
        table = np.array(self.tags.get(_COLORS, ()), np.uint16)
        table = table[: table.size // 3 * 3].reshape(3, -1).T
        # The standard's colors have 16 bits; some writers leave the upper 8 empty.
        return (table >> 8 if table.max(initial=0) > 255 else table).astype(np.uint8)


def parse(data: Any, name: str) -> Tiff:
    """Read the tags of the first page.

    Args:
        data: the file: bytes, or what gives bytes when it is sliced.
        name: what to call it in an error.

    Raises:
        DamagedError: the tags are cut off or contradict each other.
        DataError: the picture is too large.
    """
    try:
        found, after = _page(data, name, None)
        others = 0
        while after and others < _MOST_PAGES:
            page, after = _page(data, name, after)
            # What else pages hold are smaller copies of the first, and its transparency.
            others += page.size == found.size and not page.tag(_SUBFILE, 0) & 5
    except (struct.error, IndexError) as error:
        raise _damaged(name, "its table of tags is cut off") from error
    if others:
        raise DataError(
            f"{name}: the TIFF has several pages of one size; save each as a file of its own"
        )
    if len(set(found.tags.get(_BITS, (1,)))) > 1 or len(set(found.tags.get(_FORMAT, (1,)))) > 1:
        raise DataError(
            f"{name}: the TIFF's channels differ in their bits or kind; save it with equal channels"
        )
    check_size(*found.size, name)
    return found


def _page(data: Any, name: str, at: int | None) -> tuple[Tiff, int]:
    """The page whose table begins at `at`, or the first, and where the next begins (0: none)."""
    order = "<" if data[:2] == b"II" else ">"

    def read(form: str, at: int) -> tuple[Any, ...]:
        size = struct.calcsize(order + form)
        return struct.unpack(order + form, data[at : at + size])

    big = read("H", 2)[0] == 43
    offset_form = "Q" if big else "I"
    if at is None:
        (at,) = read(offset_form, 8 if big else 4)
    count_form, entry_form, inline = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    (count,) = read(count_form, at)
    at += struct.calcsize(count_form)
    if not 0 < count < 4096:
        raise _damaged(name, f"it claims {count} tags")
    tags: dict[int, tuple[Any, ...]] = {}
    for _ in range(count):
        number, kind, length = read(entry_form, at)
        where = at + struct.calcsize("=" + entry_form)
        at = where + inline
        if kind not in _TYPES:
            continue
        size = struct.calcsize(_TYPES[kind]) * length
        if size > len(data):
            raise _damaged(name, f"its tag {number} is cut off")
        if size > inline:
            (where,) = read(offset_form, where)
        tags.setdefault(number, read(f"{length}{_TYPES[kind]}", where))
    return Tiff(name, order, tags), read(offset_form, at)[0]


def samples(tiff: Tiff, data: bytes) -> np.ndarray:
    """The stored numbers.

    Args:
        tiff: the file's tags.
        data: the file.

    Returns:
        [H,W,C] of the file's own type; unsigned numbers of other than 8, 16, 32 or 64 bits are in
        the next larger type.

    Raises:
        DamagedError: the file is truncated or corrupt.
        DataError: its compression or kind of samples is not known.
    """
    (height, width), channels, bits = tiff.size, tiff.channels, tiff.bits
    if not 1 <= bits <= 64 or not 1 <= channels <= 4096:
        raise _damaged(tiff.name, f"it claims {channels} channels of {bits} bits")
    if tiff.tag(_PLANAR, 1) not in (1, 2):
        raise _damaged(tiff.name, "its channels lie neither together nor in planes")
    planar = tiff.tag(_PLANAR, 1) == 2 and channels > 1
    planes, together = (channels, 1) if planar else (1, channels)
    tiled = _TILE_OFFSETS in tiff.tags
    tile_width = tiff.tag(_TILE_WIDTH, 0) if tiled else width
    tile_height = (
        tiff.tag(_TILE_HEIGHT, 0) if tiled else min(height, tiff.tag(_ROWS_PER_STRIP, height))
    )
    if tile_width < 1 or tile_height < 1:
        raise _damaged(tiff.name, "its tiles have no pixels")
    if tile_width * tile_height > 4 * height * width + 2**20:
        raise _damaged(
            tiff.name, f"its tiles of {tile_width}x{tile_height} are far larger than the picture"
        )
    down, across = -(-height // tile_height), -(-width // tile_width)
    row_bytes = -(-tile_width * together * bits // 8)
    offsets, counts = (
        tiff.tags.get(tag, ())
        for tag in ((_TILE_OFFSETS, _TILE_BYTES) if tiled else (_STRIP_OFFSETS, _STRIP_BYTES))
    )
    if (
        not counts and len(offsets) == 1 and tiff.tag(_COMPRESSION, _PLAIN) == _PLAIN
    ):  # old writers leave the only count out
        counts = (height * row_bytes,)
    if planes * down * across > min(len(offsets), len(counts)):
        raise _damaged(
            tiff.name,
            f"{planes * down * across} pieces are wanted, {min(len(offsets), len(counts))} are there",
        )
    for offset, count in zip(offsets, counts, strict=False):
        if count < 1 or not 0 < offset <= len(data) - count:
            raise _damaged(
                tiff.name, f"it is truncated: {len(data)} bytes, {offset + count} are wanted"
            )
    if tiff.tag(_COMPRESSION, _PLAIN) not in _BYTE_STREAMS:
        return _by_pillow(tiff, data)
    if planes * height * across * row_bytes > _MOST_BYTES:
        raise DataError(
            f"{tiff.name}: the file says that its samples are more than {_MOST_BYTES} bytes; save it smaller"
        )
    result = []
    for plane in range(planes):
        part = slice(plane * down * across, (plane + 1) * down * across)
        shape = (height, across, row_bytes)
        raw = _uncompressed(tiff, data, offsets[part], counts[part], shape, tile_height, tiled)
        result.append(
            _numbers(tiff, raw, tile_width, together).reshape(
                height, across * tile_width, together
            )[:, :width]
        )
    return np.concatenate(result, axis=-1) if planes > 1 else result[0]


def _uncompressed(
    tiff: Tiff,
    data: bytes,
    offsets: tuple[int, ...],
    counts: tuple[int, ...],
    shape: tuple[int, int, int],
    rows: int,
    tiled: bool,
) -> np.ndarray:
    """The bytes of one plane without their compression.

    Args:
        tiff: the file's tags.
        data: the file.
        offsets: where each strip or tile of the plane begins.
        counts: how many bytes each has.
        shape: rows of the picture, tiles in a row, bytes in a tile's row. A strip is a tile of the
            picture's width.
        rows: of a tile.
        tiled: tiles, which are whole at the edges, too, not strips.

    Returns:
        u8 of that shape.
    """
    height, across, row_bytes = shape
    compression = tiff.tag(_COMPRESSION, _PLAIN)
    if compression not in (_PLAIN, *_DEFLATE):
        return _by_libtiff(tiff, data, offsets, counts, shape, rows, tiled)
    result = np.empty(shape, np.uint8)
    for index, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        top, left = index // across * rows, index % across
        kept = min(rows, height - top)
        piece = data[offset : offset + count]
        if tiff.tag(_FILL_ORDER, 1) == 2:
            piece = piece.translate(_REVERSED)
        if compression != _PLAIN:
            piece = _inflated(piece, (rows if tiled else kept) * row_bytes, tiff.name)
        if len(piece) < kept * row_bytes:
            raise _damaged(
                tiff.name, f"a strip or tile has {len(piece)} bytes, {kept * row_bytes} are wanted"
            )
        result[top : top + kept, left] = np.frombuffer(piece, np.uint8, kept * row_bytes).reshape(
            kept, row_bytes
        )
    return result


def _inflated(piece: bytes, size: int, name: str) -> bytes:
    """Inflate a piece to `size` bytes, or fewer if there are no more; verify its checksum."""
    stream = zlib.decompressobj()
    try:
        result = stream.decompress(piece, size + 1)
    except zlib.error as error:
        raise _damaged(name, f"its compressed data are corrupt: {error}") from error
    if len(result) <= size and not stream.eof:
        raise _damaged(name, "its compressed data are incomplete")
    return result


def _by_libtiff(
    tiff: Tiff,
    data: bytes,
    offsets: tuple[int, ...],
    counts: tuple[int, ...],
    shape: tuple[int, int, int],
    rows: int,
    tiled: bool,
) -> np.ndarray:
    """As `_uncompressed`, by libtiff.

    It is given the plane as a gray picture of 8 bits whose pixels are the bytes.
    """
    height, across, row_bytes = shape
    tags: dict[int, tuple[int, ...] | bytes] = {
        _WIDTH: (across * row_bytes,),
        _HEIGHT: (height,),
        _BITS: (8,),
        _COMPRESSION: (tiff.tag(_COMPRESSION, _PLAIN),),
        _PHOTOMETRIC: (BLACK_IS_ZERO,),
        _FILL_ORDER: (tiff.tag(_FILL_ORDER, 1),),
        _SAMPLES: (1,),
    }
    if tiled:
        tags |= {
            _TILE_WIDTH: (row_bytes,),
            _TILE_HEIGHT: (rows,),
            _TILE_OFFSETS: offsets,
            _TILE_BYTES: counts,
        }
    else:
        tags |= {_STRIP_OFFSETS: offsets, _ROWS_PER_STRIP: (rows,), _STRIP_BYTES: counts}
    return _opened(_with_tags(data, tags), tiff.name)[1].reshape(shape)


def _opened(data: bytes, name: str) -> tuple[str, np.ndarray]:
    """Pillow's mode and pixels of the first page."""
    try:
        # Not `Image.open`, whose limit on the size knows nothing of bytes taken for pixels.
        with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as opened:
            return opened.mode, np.asarray(
                opened.convert("RGB") if opened.mode == "YCbCr" else opened
            )
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        struct.error,
    ) as error:
        if "not available" in str(error):
            raise DataError(
                f"{name}: a TIFF whose compression cannot be decoded ({error}); save it with LZW"
            ) from error
        raise _damaged(name, f"its compressed data are incomplete or corrupt: {error}") from error


def _with_tags(data: bytes, tags: dict[int, tuple[int, ...] | bytes]) -> bytes:
    """A classic TIFF of the same contents with other tags, which lie at its end.

    Libtiff prints what it dislikes of the file's own tags.
    """
    start = len(data) + len(data) % 2
    entries, values = b"", b""
    after = start + 2 + 12 * len(tags) + 4
    for number, numbers in sorted(tags.items()):
        undefined = isinstance(numbers, bytes)
        packed = bytes(numbers) if undefined else np.array(numbers).astype("<u4").tobytes()
        entries += struct.pack("<HHI", number, 7 if undefined else 4, len(numbers))
        entries += (
            packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", after + len(values))
        )
        values += packed if len(packed) > 4 else b""
    head = b"II*\0" + struct.pack("<I", start)
    return b"".join(
        (
            head,
            data[8:],
            b"\0" * (len(data) % 2),
            struct.pack("<H", len(tags)),
            entries,
            b"\0" * 4,
            values,
        )
    )


def _numbers(tiff: Tiff, raw: np.ndarray, width: int, channels: int) -> np.ndarray:
    """The numbers in u8[H, across, bytes of a row]; [H, across, width, channels]."""
    bits, predictor = tiff.bits, tiff.tag(_PREDICTOR, 1)
    shape = (*raw.shape[:2], width, channels)
    if bits not in (8, 16, 32, 64):
        if tiff.format != UNSIGNED or predictor != 1:
            raise DataError(
                f"{tiff.name}: a kind of TIFF that cannot be decoded ({bits} bits, signed or predicted); save it with 16 bits"
            )
        return _unpacked(raw, bits, width * channels).reshape(shape)
    kinds = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}
    kind = kinds.get(tiff.format)
    if kind is None or (kind == "f" and bits == 8):
        raise DataError(
            f"{tiff.name}: a kind of TIFF that cannot be decoded (sample format {tiff.format}); save it as unsigned or float"
        )
    size = bits // 8
    if predictor == 3 and kind == "f":
        # The bytes of a row lie by significance, the highest first, and each is the difference from
        # the last pixel's.
        summed = np.cumsum(
            raw.reshape(*raw.shape[:2], width * size, channels), axis=2, dtype=np.uint8
        )
        swapped = np.moveaxis(summed.reshape(*raw.shape[:2], size, width * channels), 2, -1)
        return np.ascontiguousarray(swapped).view(f">f{size}").reshape(shape).astype(f"f{size}")
    if predictor not in (1, 2):
        raise DataError(
            f"{tiff.name}: a kind of TIFF that cannot be decoded (predictor {predictor}); save it without a predictor"
        )
    unsigned = np.ascontiguousarray(raw).view(f"{tiff.order}u{size}").reshape(shape)
    if predictor == 2:
        unsigned = np.cumsum(unsigned, axis=2, dtype=f"u{size}")
    return unsigned.astype(f"=u{size}", copy=False).view(f"{kind}{size}")


def _unpacked(raw: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` unsigned numbers of `bits` bits in each row, the highest bit first."""
    dtype = (
        np.uint8 if bits < 8 else np.uint16 if bits < 16 else np.uint32 if bits < 32 else np.uint64
    )
    single = np.unpackbits(raw, axis=-1)[..., : count * bits].reshape(*raw.shape[:2], count, bits)
    result = np.zeros(single.shape[:-1], dtype)
    for bit in range(bits):
        result = (result << dtype(1)) | single[..., bit]
    return result


def _by_pillow(tiff: Tiff, data: bytes) -> np.ndarray:
    """Pictures whose compression is one of pixels, such as JPEG's: gray, RGB or CMYK."""
    compression = tiff.tag(_COMPRESSION, _PLAIN)
    if compression not in (*_FAX, _JPEG):
        raise DataError(
            f"{tiff.name}: a TIFF whose compression ({compression}) cannot be decoded; save it with LZW"
        )
    if compression == _JPEG:
        _check_jpegs(tiff, data)
    single: tuple[int, ...] = (_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES)
    single += (_ROWS_PER_STRIP, _PLANAR, _T4_OPTIONS, _TILE_WIDTH, _TILE_HEIGHT)
    several = (_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES, _EXTRA)
    tags: dict[int, tuple[int, ...] | bytes] = {
        number: tiff.tags[number][:1] for number in single if number in tiff.tags
    }
    tags |= {number: tiff.tags[number] for number in several if number in tiff.tags}
    tags[_BITS] = (tiff.bits,) * tiff.channels
    if _JPEG_TABLES in tiff.tags:
        tags[_JPEG_TABLES] = bytes(tiff.tags[_JPEG_TABLES])
    mode, pixels = _opened(_with_tags(data, tags), tiff.name)
    if mode not in ("1", "L", "RGB", "CMYK", "YCbCr"):
        raise DataError(
            f"{tiff.name}: a kind of TIFF that cannot be decoded (compressed pixels of mode {mode}); save it with LZW"
        )
    values = pixels.reshape(*pixels.shape[:2], -1).astype(np.uint8)
    # Pillow inverts what is stored with white at zero.
    return (1 if mode == "1" else 255) - values if tiff.photometric == WHITE_IS_ZERO else values


def _check_jpegs(tiff: Tiff, data: bytes) -> None:
    """Raise `DamagedError` if a strip or tile is a damaged JPEG.

    Libtiff passes over the decoder's warnings.
    """
    tables = bytes(tiff.tags.get(_JPEG_TABLES, ()))[:-2]  # without its end marker
    offsets, counts = (
        (_TILE_OFFSETS, _TILE_BYTES)
        if _TILE_OFFSETS in tiff.tags
        else (_STRIP_OFFSETS, _STRIP_BYTES)
    )
    for offset, count in zip(tiff.tags.get(offsets, ()), tiff.tags.get(counts, ()), strict=False):
        piece = data[offset : offset + count]
        jpeg.decode(tables + piece[2:] if tables else piece, tiff.name)


def _damaged(name: str, reason: str) -> DamagedError:
    return DamagedError(f"{name}: the TIFF is damaged ({reason}); copy or download the file again")
