"""Text files from any editor."""

from pathlib import Path

import pytest

from fcn_jax.runtime.text_file import read_text

TEXT = "# my classes\nbackground\nRöad\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_byte_order_mark_and_line_endings_do_not_change_the_text(
    encoding: str, newline: str, tmp_path: Path
) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(TEXT.replace("\n", newline).encode(encoding))
    assert read_text(path) == TEXT


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_rejects_utf16_by_name(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(TEXT.encode(encoding))
    with pytest.raises(ValueError, match="UTF-16 text; save it as UTF-8"):
        read_text(path)


def test_rejects_other_encodings_and_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(ValueError, match="line 3 is not UTF-8 text"):
        read_text(path)


def test_rejects_binary_contents(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"abc def ghi\0 jkl")
    with pytest.raises(ValueError, match="binary"):
        read_text(path)
