"""PNG files that Pillow cannot write: any bit depth and color type, additional chunks, broken
streams."""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, contents: bytes) -> bytes:
    """Return a chunk with its checksum."""
    return (
        struct.pack(">I", len(contents))
        + kind
        + contents
        + struct.pack(">I", zlib.crc32(kind + contents))
    )


def rows_of(values: np.ndarray, depth: int) -> bytes:
    """Return the uncompressed, unfiltered rows of values of `depth` bits, [H,W] or [H,W,C]."""
    values = values.reshape(values.shape[0], -1)
    if depth >= 8:
        return b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in values)
    digits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return b"".join(
        b"\0" + np.packbits(row.astype(np.uint8).reshape(-1)).tobytes() for row in digits
    )


def png_bytes(
    values: np.ndarray,
    depth: int = 8,
    color: int = 0,
    *,
    chunks: tuple[bytes, ...] = (),
    stream: bytes | None = None,
) -> bytes:
    """Return a PNG.

    Args:
        values: stored values, [H,W] or [H,W,C].
        depth: bits per value.
        color: color type: 0 (gray), 2 (RGB), 3 (indexed), 4 (gray and alpha) or 6 (RGBA).
        chunks: additional chunks before the pixels, such as the palette.
        stream: compressed pixels to write instead of those of `values`.
    """
    height, width = values.shape[:2]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    stream = zlib.compress(rows_of(values, depth)) if stream is None else stream
    return SIGNATURE + header + b"".join(chunks) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")
