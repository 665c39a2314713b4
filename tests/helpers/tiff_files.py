"""TIFF files that Pillow and OpenCV cannot write: any bit depth, strips, tiles, planes, predictors
and byte orders."""

import struct
import zlib

import numpy as np


def tiff_bytes(
    values: np.ndarray,
    *,
    bits: int | None = None,
    photometric: int | None = None,
    order: str = "<",
    rows_per_strip: int | None = None,
    tile: int | None = None,
    planar: bool = False,
    deflate: bool = False,
    predictor: int = 1,
    tags: dict[int, tuple[int, ...]] | None = None,
    repeat: int = 1,
) -> bytes:
    """Return a classic TIFF.

    Args:
        values: [H,W] or [H,W,C] of an unsigned, signed or floating point dtype, stored unchanged.
        bits: bits per sample; by default those of the dtype. Only for unsigned numbers.
        photometric: photometric interpretation; by default 1 (gray) or 2 (RGB).
        order: byte order, "<" or ">".
        rows_per_strip: by default, all rows are in one strip.
        tile: height and width of the tiles; by default, the file has strips.
        planar: store each channel in its own plane.
        deflate: compress by deflate.
        predictor: 1 (none) or 2 (horizontal differences).
        tags: additional tags, as 16-bit numbers.
        repeat: number of equal pages.
    """
    values = values if values.ndim == 3 else values[..., None]
    height, width, channels = values.shape
    kind, size = values.dtype.kind, values.dtype.itemsize
    bits = bits or size * 8
    planes = [values[..., [channel]] for channel in range(channels)] if planar else [values]
    pieces = []
    for plane in planes:
        step_down, step_across = (tile, tile) if tile else (rows_per_strip or height, width)
        for top in range(0, height, step_down):
            for left in range(0, width, step_across):
                piece = plane[top : top + step_down, left : left + step_across]
                if tile:
                    piece = np.pad(
                        piece, ((0, tile - piece.shape[0]), (0, tile - piece.shape[1]), (0, 0))
                    )
                if predictor == 2:
                    piece = np.concatenate([piece[:, :1], np.diff(piece, axis=1)], axis=1).astype(
                        values.dtype
                    )
                rows = [_row(row, bits, order) for row in piece]
                pieces.append(zlib.compress(b"".join(rows)) if deflate else b"".join(rows))
    data, offsets = b"II*\0" if order == "<" else b"MM\0*", []
    data += b"\0" * 4
    for piece in pieces:
        offsets.append(len(data))
        data += piece + b"\0" * (len(piece) % 2)
    entries: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (bits,) * channels,
        259: (8 if deflate else 1,),
        262: ((2 if channels in (3, 4) else 1) if photometric is None else photometric,),
        277: (channels,),
        284: (2 if planar else 1,),
        317: (predictor,),
        339: ({"u": 1, "i": 2, "f": 3}[kind],) * channels,
    }
    if tile:
        entries |= {322: (tile,), 323: (tile,), 324: tuple(offsets), 325: tuple(map(len, pieces))}
    else:
        entries |= {
            273: tuple(offsets),
            278: (rows_per_strip or height,),
            279: tuple(map(len, pieces)),
        }
    entries |= tags or {}
    link = 4
    for _ in range(repeat):
        start = len(data)
        data = data[:link] + struct.pack(order + "I", start) + data[link + 4 :]
        table, after = b"", b""
        extra = start + 2 + 12 * len(entries) + 4
        for number, numbers in sorted(entries.items()):
            long = number in (273, 279, 324, 325)
            packed = struct.pack(f"{order}{len(numbers)}{'I' if long else 'H'}", *numbers)
            table += struct.pack(order + "HHI", number, 4 if long else 3, len(numbers))
            if len(packed) > 4:
                table += struct.pack(order + "I", extra + len(after))
                after += packed + b"\0" * (len(packed) % 2)
            else:
                table += packed.ljust(4, b"\0")
        data += struct.pack(order + "H", len(entries)) + table + b"\0" * 4 + after
        link = start + 2 + 12 * len(entries)
    return data


def _row(row: np.ndarray, bits: int, order: str) -> bytes:
    size = row.dtype.itemsize * 8
    if bits == size:
        return row.astype(row.dtype.newbyteorder(order)).tobytes()
    digits = (
        row.reshape(-1, 1).astype(np.uint64) >> np.arange(bits - 1, -1, -1, dtype=np.uint64)
    ) & np.uint64(1)
    return np.packbits(digits.astype(np.uint8).reshape(-1)).tobytes()
