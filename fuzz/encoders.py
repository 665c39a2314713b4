"""Writers of PNG and TIFF files of every bit depth, and pictures rotated as cameras store them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
"""The orientation tag of EXIF and TIFF."""

GRAY, RGB, INDEXED, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""The color types of PNG."""

_CHANNELS = {GRAY: 1, RGB: 3, INDEXED: 1, GRAY_ALPHA: 2, RGBA: 4}
_ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels that a file with this orientation stores, so that viewers show `upright`.

    Args:
        upright: [H,W,...].
        orientation: EXIF orientation, 1 to 8. It tells which sides of the upright picture the
            stored row 0 and column 0 are; 6 means "right, top".
    """
    swapped = np.swapaxes(upright, 0, 1)
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: swapped,
        6: swapped[::-1],
        7: swapped[::-1, ::-1],
        8: swapped[:, ::-1],
    }[orientation]


def exif(orientation: int) -> Image.Exif:
    """Return EXIF data with an orientation and a camera name."""
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    tags[0x010F] = "camera"
    return tags


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    samples: np.ndarray,
    *,
    depth: int = 8,
    color: int | None = None,
    palette: np.ndarray | None = None,
    interlaced: bool = False,
    before: Sequence[bytes] = (),
    orientation: int = 1,
    rng: np.random.Generator | None = None,
) -> bytes:
    """Write a PNG.

    Args:
        samples: [H,W] or [H,W,C], values below 2^depth.
        depth: bits per sample.
        color: color type; by default that of the number of channels.
        palette: u8[N,3], for `INDEXED`.
        interlaced: whether to interlace by Adam7.
        before: complete chunks, inserted after the palette.
        orientation: written in an eXIf chunk, unless it is 1.
        rng: draws the filter of each row and the sizes of the IDAT chunks; without it there are no
            filters and there is one chunk.
    """
    samples = samples if samples.ndim == 3 else samples[..., None]
    if color is None:
        color = {1: GRAY, 2: GRAY_ALPHA, 3: RGB, 4: RGBA}[samples.shape[2]]
    height, width, _ = samples.shape
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    raw = b"".join(_filtered(samples[y::dy, x::dx], depth, rng) for y, x, dy, dx in passes)
    packed = zlib.compress(raw, 6)
    chunks = [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)),
    ]
    if palette is not None:
        chunks.append(chunk(b"PLTE", palette.astype(np.uint8).tobytes()))
    if orientation != 1:
        chunks.append(chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0")))
    chunks += before
    step = len(packed) if rng is None else int(rng.integers(1 + len(packed) // 3, len(packed) + 1))
    chunks += [chunk(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step)]
    return b"".join([*chunks, chunk(b"IEND", b"")])


def png_chunks(data: bytes) -> list[bytes]:
    """Split a PNG into its signature and its chunks."""
    parts, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        parts.append(data[at:end])
        at = end
    return parts


def _filtered(samples: np.ndarray, depth: int, rng: np.random.Generator | None) -> bytes:
    height, width, channels = samples.shape
    if not height or not width:
        return b""
    rows = _packed(samples, depth)
    bytes_per_pixel = max(1, channels * depth // 8)
    previous, result = np.zeros_like(rows[0]), []
    for row in rows:
        kind = 0 if rng is None else int(rng.integers(5))
        left = np.concatenate([np.zeros(bytes_per_pixel, np.uint8), row])[: len(row)].astype(int)
        corner = np.concatenate([np.zeros(bytes_per_pixel, np.uint8), previous])[: len(row)].astype(
            int
        )
        above = previous.astype(int)
        guess = left + above - corner
        distances = np.stack([abs(guess - left), abs(guess - above), abs(guess - corner)])
        nearest = np.choose(distances.argmin(0), [left, above, corner])
        predicted = (0, left, above, (left + above) // 2, nearest)[kind]
        result.append(
            bytes([kind]) + ((row.astype(int) - predicted) % 256).astype(np.uint8).tobytes()
        )
        previous = row
    return b"".join(result)


def _packed(samples: np.ndarray, depth: int, order: str = ">") -> np.ndarray:
    """Pack samples into rows of bytes: u8[H, bytes]."""
    height = samples.shape[0]
    rows = samples.reshape(height, -1)
    if depth == 16:
        return rows.astype(f"{order}u2").view(np.uint8).reshape(height, -1)
    bits = (rows[..., None].astype(np.uint8) >> np.arange(depth - 1, -1, -1, dtype=np.uint8)) & 1
    return np.packbits(bits.reshape(height, -1), axis=1)


def tiff(
    samples: np.ndarray,
    *,
    depth: int = 8,
    order: str = "<",
    deflated: bool = False,
    orientation: int = 1,
    white_is_zero: bool = False,
    palette: np.ndarray | None = None,
    rows_per_strip: int | None = None,
) -> bytes:
    """Write a TIFF.

    Args:
        samples: [H,W] or [H,W,3], integers below 2^depth; or float32 with any depth.
        depth: bits per sample: 1, 2, 4, 8, 16.
        order: byte order, `<` or `>`.
        deflated: whether to compress by deflate.
        orientation: the tag's value; no tag if it is 1.
        white_is_zero: whether gray value 0 is white.
        palette: u8[2^depth,3], for indexed pixels.
        rows_per_strip: by default, all rows are in one strip.
    """
    samples = samples if samples.ndim == 3 else samples[..., None]
    height, width, channels = samples.shape
    floating = samples.dtype.kind == "f"
    if floating:
        depth, rows = 32, samples.astype(f"{order}f4").reshape(height, -1).view(np.uint8)
    else:
        rows = _packed(samples, depth, order)
    step = rows_per_strip or height
    strips = [rows[at : at + step].tobytes() for at in range(0, height, step)]
    if deflated:
        strips = [zlib.compress(strip) for strip in strips]
    photometric = 3 if palette is not None else 2 if channels == 3 else int(not white_is_zero)
    offsets = [8 + sum(map(len, strips[:k])) for k in range(len(strips))]
    tags: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [depth] * channels),
        (259, "H", [8 if deflated else 1]),
        (262, "H", [photometric]),
        (273, "I", offsets),
        *([(ORIENTATION, "H", [orientation])] if orientation != 1 else []),
        (277, "H", [channels]),
        (278, "I", [step]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [1]),
        *(
            [(320, "H", (palette.T.astype(int).ravel() * 257).tolist())]
            if palette is not None
            else []
        ),
        (339, "H", [3 if floating else 1] * channels),
    ]
    body = b"".join(strips)
    body += bytes(len(body) % 2)
    extra, entries = b"", b""
    after = 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, kind, values in sorted(tags):
        data = struct.pack(f"{order}{len(values)}{kind}", *values)
        entries += struct.pack(f"{order}HHI", tag, 3 if kind == "H" else 4, len(values))
        if len(data) <= 4:
            entries += data.ljust(4, b"\0")
        else:
            entries += struct.pack(f"{order}I", after + len(extra))
            extra += data + bytes(len(data) % 2)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(body))
    return head + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + extra


def by_pillow(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    """Write an image with Pillow, converted to `mode` first."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()
