"""PNG files to pixels or stored values. Every checksum is verified."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import cv2
import numpy as np

from fcn_jax.data.images import orientation
from fcn_jax.data.images.limits import check_size, damaged

SIGNATURE = b"\x89PNG\r\n\x1a\n"

GRAY, RGB, INDEXED, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""Color types of the header."""

_DEPTHS = {
    GRAY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    INDEXED: (1, 2, 4, 8),
    GRAY_ALPHA: (8, 16),
    RGBA: (8, 16),
}
_IGNORABLE = 0x20  # this bit of a chunk's first letter marks the chunk as ancillary


@dataclasses.dataclass(frozen=True)
class Png:
    """A PNG whose checksums are right.

    Attributes:
        name: the name of the file in an error.
        header: the contents of the chunk IHDR.
        critical: the other chunks that make up the pixels, as stored, without IEND.
        palette: the contents of the chunk PLTE.
        significant_bits: the largest number in the chunk sBIT, in bits per channel; 0 if there is
            no such chunk.
        orientation: EXIF orientation, 1 to 8.
    """

    name: str
    header: bytes
    critical: tuple[memoryview, ...]
    palette: bytes
    significant_bits: int
    orientation: int

    @property
    def depth(self) -> int:
        """Bits of a sample: 1, 2, 4, 8 or 16."""
        return self.header[8]

    @property
    def color(self) -> int:
        """Color type, such as `GRAY`."""
        return self.header[9]

    def image(self) -> np.ndarray:
        """The picture as stored: u8[H,W,3], RGB, as a viewer shows it; u16 if it has 16 bits."""
        any_depth = cv2.IMREAD_ANYDEPTH if self.depth == 16 else 0
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | any_depth
        return self._decoded(self.header, flags)

    def values(self) -> np.ndarray:
        """The stored numbers, u16 for a file of 16 bits, otherwise u8.

        Returns:
            [H,W] gray values or palette indices; [H,W,C] RGB, RGBA, or gray and alpha.
        """
        # An indexed PNG is read as a gray one, so that its indices do not become colors.
        as_gray = self.header[:9] + bytes([GRAY]) + self.header[10:]
        header = as_gray if self.color == INDEXED else self.header
        pixels = self._decoded(header, cv2.IMREAD_UNCHANGED)
        if self.color == GRAY_ALPHA:
            return pixels[..., 2:]
        if pixels.ndim == 3:
            return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
        # OpenCV scales gray values of fewer bits to 0 to 255.
        return pixels // np.uint8(255 // (2**self.depth - 1)) if self.depth < 8 else pixels

    def _decoded(self, header: bytes, flags: int) -> np.ndarray:
        # Only the chunks that make up the pixels: OpenCV prints warnings on the others.
        gray = header[9] == GRAY
        kept = [chunk for chunk in self.critical if not gray or chunk[4:8] == b"IDAT"]
        data = b"".join((SIGNATURE, _chunk(b"IHDR", header), *kept, _chunk(b"IEND", b"")))
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:
            raise damaged("PNG", self.name, error.err) from error
        if pixels is None:
            raise damaged("PNG", self.name, "its compressed data are incomplete or corrupt")
        return np.asarray(pixels)


def _orientation_of_text(kind: bytes, chunk: bytes, otherwise: int) -> int:
    """The orientation in EXIF data as text, as ImageMagick wrote it before the chunk eXIf."""
    key, _, text = chunk.partition(b"\0")
    if key not in (b"Raw profile type exif", b"Raw profile type APP1"):
        return otherwise
    try:
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], 1 << 20)
        # A line feed, the kind of profile, its length, and the bytes as hexadecimal digits.
        digits = b"".join(text.split()[2:])
        return orientation.from_exif(bytes.fromhex(digits.decode("ascii")))
    except (ValueError, zlib.error):
        return otherwise


def parse(data: bytes, name: str) -> Png:
    """Read the chunks of a PNG.

    Args:
        data: the file.
        name: the name of the file in an error.

    Raises:
        DamagedError: a checksum is wrong, or a part of the file is missing.
        DataError: the picture is too large.
    """
    at, header, palette, bits, turn, ended = len(SIGNATURE), b"", b"", 0, 1, False
    critical: list[memoryview] = []
    view = memoryview(data)
    while not ended:
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + length
        if end > len(data):
            raise damaged("PNG", name, f"it is truncated: {len(data)} bytes, its end is missing")
        kind = data[at + 4 : at + 8]
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise damaged("PNG", name, f"the checksum of a chunk {kind!r} is wrong")
        if not header and kind != b"IHDR":
            raise damaged("PNG", name, "its header is missing")
        if kind == b"IHDR":
            header = data[at + 8 : end - 4]
            if len(header) != 13 or header[8] not in _DEPTHS.get(header[9], ()):
                raise damaged("PNG", name, "its header is not a valid PNG header")
        elif kind == b"IEND":
            ended = True
        elif kind == b"sBIT":
            bits = max(data[at + 8 : end - 4], default=0)
        elif kind == b"eXIf":
            turn = orientation.from_exif(data[at + 8 : end - 4])
        elif kind in (b"tEXt", b"zTXt"):
            turn = _orientation_of_text(kind, data[at + 8 : end - 4], turn)
        elif kind == b"tRNS" or not kind[0] & _IGNORABLE:
            critical.append(view[at:end])
            palette = data[at + 8 : end - 4] if kind == b"PLTE" else palette
        at = end
    check_size(int.from_bytes(header[4:8], "big"), int.from_bytes(header[:4], "big"), name)
    return Png(name, header, tuple(critical), palette, bits, turn)


def _chunk(kind: bytes, contents: bytes) -> bytes:
    length, checksum = len(contents), zlib.crc32(kind + contents)
    return struct.pack(">I", length) + kind + contents + struct.pack(">I", checksum)
