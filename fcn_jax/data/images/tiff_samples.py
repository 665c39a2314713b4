"""The samples of TIFF files, of any bit depth; see `fcn_jax.data.images.tiff`."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib

import numpy as np
from PIL import TiffImagePlugin

from fcn_jax.data.images import jpeg
from fcn_jax.data.images.limits import PILLOW_ERRORS
from fcn_jax.data.images.tiff import (
    BLACK_IS_ZERO,
    FLOAT,
    SIGNED,
    UNSIGNED,
    WHITE_IS_ZERO,
    Tag,
    Tiff,
)
from fcn_jax.errors import DataError

_PLAIN = 1
_DEFLATE = (8, 32946)
_BYTE_STREAMS = (_PLAIN, *_DEFLATE, 5, 32773, 34925, 50000)
"""Compressions of bytes of any meaning: none, deflate, LZW, PackBits, LZMA, Zstandard."""

_FAX = (2, 3, 4)
_JPEG = 7

_MOST_BYTES = 2**31
"""Limit for all samples together: a few bytes of compressed data can claim any number."""

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the other order."""

_Tags = dict[int, tuple[int, ...] | bytes]


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """The strips or tiles of one plane. A strip is a tile of the picture's width.

    Attributes:
        offsets: the position of each piece in the file.
        counts: the number of bytes of each piece.
        shape: rows of the picture, tiles in a row, bytes in a tile's row.
        rows: rows of a piece.
        tiled: whether the pieces are tiles, which are complete at the edges too.
    """

    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    shape: tuple[int, int, int]
    rows: int
    tiled: bool


def samples(tiff: Tiff, data: bytes) -> np.ndarray:
    """The stored numbers.

    Args:
        tiff: the file's tags.
        data: the file.

    Returns:
        [H,W,C] of the file's own type. Unsigned numbers of other than 8, 16, 32 or 64 bits have the
        next larger type.

    Raises:
        DamagedError: the file is truncated or corrupt.
        DataError: the compression or the kind of the samples is not known.
    """
    (height, width), channels, bits = tiff.size, tiff.channels, tiff.bits
    planar = tiff.tag(Tag.PLANAR, 1)
    if not 1 <= bits <= 64 or not 1 <= channels <= 4096:
        raise tiff.damaged(f"it claims {channels} channels of {bits} bits")
    if planar not in (1, 2):
        raise tiff.damaged("its channels lie neither together nor in planes")
    planes, together = (channels, 1) if planar == 2 else (1, channels)
    tiled = Tag.TILE_OFFSETS in tiff.tags
    if tiled:
        tile_width, rows = tiff.tag(Tag.TILE_WIDTH, 0), tiff.tag(Tag.TILE_HEIGHT, 0)
    else:
        tile_width, rows = width, min(height, tiff.tag(Tag.ROWS_PER_STRIP, height))
    if tile_width < 1 or rows < 1:
        raise tiff.damaged("its tiles have no pixels")
    if tile_width * rows > 4 * height * width + 2**20:
        raise tiff.damaged(f"its tiles of {tile_width}x{rows} are far larger than the picture")
    down, across = -(-height // rows), -(-width // tile_width)
    row_bytes = -(-tile_width * together * bits // 8)
    offsets, counts = _places(tiff)
    if not counts and len(offsets) == 1 and tiff.compression == _PLAIN:
        counts = (height * row_bytes,)  # old writers leave the only count out
    there, expected = min(len(offsets), len(counts)), planes * down * across
    if expected > there:
        raise tiff.damaged(f"{expected} pieces are expected, {there} are there")
    for offset, count in zip(offsets, counts, strict=False):
        if count < 1 or not 0 < offset <= len(data) - count:
            raise tiff.damaged(f"it is truncated: {len(data)} bytes, {offset + count} are expected")
    if tiff.compression not in _BYTE_STREAMS:
        return _by_pillow(tiff, data)
    if planes * height * across * row_bytes > _MOST_BYTES:
        raise DataError(
            f"{tiff.name}: the file says that its samples are more than {_MOST_BYTES} bytes; save "
            "it smaller"
        )
    result = []
    for plane in range(planes):
        part = slice(plane * down * across, (plane + 1) * down * across)
        shape = (height, across, row_bytes)
        raw = _uncompressed(tiff, data, _Pieces(offsets[part], counts[part], shape, rows, tiled))
        numbers = _numbers(tiff, raw, tile_width, together)
        result.append(numbers.reshape(height, across * tile_width, together)[:, :width])
    return np.concatenate(result, axis=-1) if planes > 1 else result[0]


def _places(tiff: Tiff) -> tuple[tuple[int, ...], ...]:
    """The offsets and the numbers of bytes of the strips or tiles."""
    tiled = Tag.TILE_OFFSETS in tiff.tags
    tags = (Tag.TILE_OFFSETS, Tag.TILE_BYTES) if tiled else (Tag.STRIP_OFFSETS, Tag.STRIP_BYTES)
    return tuple(tiff.tags.get(tag, ()) for tag in tags)


def _uncompressed(tiff: Tiff, data: bytes, pieces: _Pieces) -> np.ndarray:
    """u8 of `pieces.shape`: the bytes of one plane without their compression."""
    if tiff.compression not in (_PLAIN, *_DEFLATE):
        return _by_libtiff(tiff, data, pieces)
    height, across, row_bytes = pieces.shape
    result = np.empty(pieces.shape, np.uint8)
    for index, (offset, count) in enumerate(zip(pieces.offsets, pieces.counts, strict=True)):
        top, left = index // across * pieces.rows, index % across
        kept = min(pieces.rows, height - top)
        piece = data[offset : offset + count]
        if tiff.tag(Tag.FILL_ORDER, 1) == 2:
            piece = piece.translate(_REVERSED)
        if tiff.compression != _PLAIN:
            piece = _inflated(tiff, piece, (pieces.rows if pieces.tiled else kept) * row_bytes)
        size = kept * row_bytes
        if len(piece) < size:
            raise tiff.damaged(f"a strip or tile has {len(piece)} bytes, {size} are expected")
        values = np.frombuffer(piece, np.uint8, size)
        result[top : top + kept, left] = values.reshape(kept, row_bytes)
    return result


def _inflated(tiff: Tiff, piece: bytes, size: int) -> bytes:
    """Inflate a piece to `size` bytes, or fewer if there are no more; verify its checksum."""
    stream = zlib.decompressobj()
    try:
        result = stream.decompress(piece, size + 1)
    except zlib.error as error:
        raise tiff.damaged(f"its compressed data are corrupt: {error}") from error
    if len(result) <= size and not stream.eof:
        raise tiff.damaged("its compressed data are incomplete")
    return result


def _by_libtiff(tiff: Tiff, data: bytes, pieces: _Pieces) -> np.ndarray:
    """As `_uncompressed`, by libtiff: the plane as a gray picture of 8 bits, a pixel per byte."""
    height, across, row_bytes = pieces.shape
    tags: _Tags = {
        Tag.WIDTH: (across * row_bytes,),
        Tag.HEIGHT: (height,),
        Tag.BITS: (8,),
        Tag.COMPRESSION: (tiff.compression,),
        Tag.PHOTOMETRIC: (BLACK_IS_ZERO,),
        Tag.FILL_ORDER: (tiff.tag(Tag.FILL_ORDER, 1),),
        Tag.SAMPLES: (1,),
    }
    if pieces.tiled:
        tags |= {Tag.TILE_WIDTH: (row_bytes,), Tag.TILE_HEIGHT: (pieces.rows,)}
        tags |= {Tag.TILE_OFFSETS: pieces.offsets, Tag.TILE_BYTES: pieces.counts}
    else:
        tags |= {Tag.STRIP_OFFSETS: pieces.offsets, Tag.STRIP_BYTES: pieces.counts}
        tags[Tag.ROWS_PER_STRIP] = (pieces.rows,)
    return _opened(tiff, _with_tags(data, tags))[1].reshape(pieces.shape)


def _opened(tiff: Tiff, data: bytes) -> tuple[str, np.ndarray]:
    """Pillow's mode and pixels of the first page of a file with other tags."""
    try:
        # Not `Image.open`, whose limit on the size does not expect bytes as pixels.
        with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as opened:
            is_ycbcr = opened.mode == "YCbCr"
            return opened.mode, np.asarray(opened.convert("RGB") if is_ycbcr else opened)
    except PILLOW_ERRORS as error:
        if "not available" in str(error):
            raise tiff.undecodable(f"compression: {error}", "save it with LZW") from error
        raise tiff.damaged(f"its compressed data are incomplete or corrupt: {error}") from error


def _with_tags(data: bytes, tags: _Tags) -> bytes:
    """A classic TIFF of the same contents with other tags, which are appended.

    With the file's own tags, libtiff would print warnings.
    """
    start = len(data) + len(data) % 2
    entries, values = b"", b""
    after = start + 2 + 12 * len(tags) + 4
    for number, numbers in sorted(tags.items()):
        undefined = isinstance(numbers, bytes)
        packed = bytes(numbers) if undefined else np.array(numbers).astype("<u4").tobytes()
        entries += struct.pack("<HHI", number, 7 if undefined else 4, len(numbers))
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", after + len(values))
            values += packed
    head, padding = b"II*\0" + struct.pack("<I", start), b"\0" * (len(data) % 2)
    table = struct.pack("<H", len(tags)) + entries + b"\0" * 4
    return b"".join((head, data[8:], padding, table, values))


def _numbers(tiff: Tiff, raw: np.ndarray, width: int, channels: int) -> np.ndarray:
    """The numbers in u8[H, across, bytes of a row]; [H, across, width, channels]."""
    bits, predictor = tiff.bits, tiff.tag(Tag.PREDICTOR, 1)
    shape = (*raw.shape[:2], width, channels)
    if bits not in (8, 16, 32, 64):
        if tiff.format != UNSIGNED or predictor != 1:
            raise tiff.undecodable(f"{bits} bits, signed or predicted", "save it with 16 bits")
        return _unpacked(raw, bits, width * channels).reshape(shape)
    kind = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}.get(tiff.format)
    if kind is None or (kind == "f" and bits == 8):
        raise tiff.undecodable(f"sample format {tiff.format}", "save it as unsigned or float")
    size = bits // 8
    if predictor == 3 and kind == "f":
        # The bytes of a row are ordered by significance, the highest first, and each is the
        # difference from the last pixel's.
        rows = raw.reshape(*raw.shape[:2], width * size, channels)
        summed = np.cumsum(rows, axis=2, dtype=np.uint8)
        swapped = np.moveaxis(summed.reshape(*raw.shape[:2], size, width * channels), 2, -1)
        return np.ascontiguousarray(swapped).view(f">f{size}").reshape(shape).astype(f"f{size}")
    if predictor not in (1, 2):
        raise tiff.undecodable(f"predictor {predictor}", "save it without a predictor")
    unsigned = np.ascontiguousarray(raw).view(f"{tiff.order}u{size}").reshape(shape)
    if predictor == 2:
        unsigned = np.cumsum(unsigned, axis=2, dtype=f"u{size}")
    return unsigned.astype(f"=u{size}", copy=False).view(f"{kind}{size}")


def _unpacked(raw: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` unsigned numbers of `bits` bits in each row, the highest bit first."""
    dtype = np.min_scalar_type(2**bits - 1).type
    single = np.unpackbits(raw, axis=-1)[..., : count * bits].reshape(*raw.shape[:2], count, bits)
    result = np.zeros(single.shape[:-1], dtype)
    for bit in range(bits):
        result = (result << dtype(1)) | single[..., bit]
    return result


def _by_pillow(tiff: Tiff, data: bytes) -> np.ndarray:
    """The pixels of a picture with a compression of pixels, such as JPEG: gray, RGB or CMYK."""
    if tiff.compression not in (*_FAX, _JPEG):
        raise tiff.undecodable(f"compression {tiff.compression}", "save it with LZW")
    if tiff.compression == _JPEG:
        _check_jpegs(tiff, data)
    single = (
        Tag.WIDTH, Tag.HEIGHT, Tag.COMPRESSION, Tag.PHOTOMETRIC, Tag.FILL_ORDER, Tag.SAMPLES,
        Tag.ROWS_PER_STRIP, Tag.PLANAR, Tag.T4_OPTIONS, Tag.TILE_WIDTH, Tag.TILE_HEIGHT,
    )  # fmt: skip
    several = (
        Tag.STRIP_OFFSETS, Tag.STRIP_BYTES, Tag.TILE_OFFSETS, Tag.TILE_BYTES, Tag.EXTRA,
    )  # fmt: skip
    tags: _Tags = {number: tiff.tags[number][:1] for number in single if number in tiff.tags}
    tags |= {number: tiff.tags[number] for number in several if number in tiff.tags}
    tags[Tag.BITS] = (tiff.bits,) * tiff.channels
    if Tag.JPEG_TABLES in tiff.tags:
        tags[Tag.JPEG_TABLES] = bytes(tiff.tags[Tag.JPEG_TABLES])
    mode, pixels = _opened(tiff, _with_tags(data, tags))
    if mode not in ("1", "L", "RGB", "CMYK", "YCbCr"):
        raise tiff.undecodable(f"compressed pixels of mode {mode}", "save it with LZW")
    values = pixels.reshape(*pixels.shape[:2], -1).astype(np.uint8)
    # Pillow inverts pictures that are stored with white as zero.
    return (1 if mode == "1" else 255) - values if tiff.photometric == WHITE_IS_ZERO else values


def _check_jpegs(tiff: Tiff, data: bytes) -> None:
    """Raise `DamagedError` if a strip or tile is a damaged JPEG: libtiff ignores warnings."""
    tables = bytes(tiff.tags.get(Tag.JPEG_TABLES, ()))[:-2]  # without its end marker
    for offset, count in zip(*_places(tiff), strict=False):
        piece = data[offset : offset + count]
        jpeg.decode(tables + piece[2:] if tables else piece, tiff.name)
