"""Text files that people write, with any editor on any system."""

from __future__ import annotations

import codecs
from pathlib import Path

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, with or without a byte order mark, with any line endings.

    Args:
        path: the file.

    Returns:
        The text; every line ends in a plain line feed.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not UTF-8 text. The message names its encoding if it is known, and
            how to save it.
    """
    return decode_text(path.read_bytes())


def decode_text(data: bytes) -> str:
    """Decode the contents of a text file; see `read_text`."""
    if data.startswith(_UTF16) or (len(data) > 1 and data[:200].count(0) * 3 > len(data[:200])):
        raise ValueError("it is UTF-16 text; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError("it is binary, not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")
