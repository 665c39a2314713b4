"""Checks of output paths, which leave nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fcn_jax.errors import WriteError
from fcn_jax.runtime import destination


def ours(path: Path) -> bool:
    return path.is_file() and path.read_bytes() == b"ours"


def check_file(path: Path) -> None:
    destination.check_file(path, ours, "a report")


CHECKS = [destination.check_folder, destination.check_new, check_file]


@pytest.mark.parametrize("check", CHECKS)
def test_accepts_writable_paths_and_makes_nothing(tmp_path, check):
    check(tmp_path / "new")
    check(tmp_path / "missing" / "folders" / "new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("check", CHECKS)
def test_rejects_unwritable_paths(tmp_path, check, monkeypatch):
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, reason in (
        ("file/new", f"{tmp_path}/file is not a writable folder"),
        ("file/missing/new", f"{tmp_path}/file is not a writable folder"),
        ("dangling/new", f"{tmp_path}/dangling is not a writable folder"),
        (
            "n" * 256,
            "a name in it is longer than 255 bytes"
            if check == destination.check_folder
            else "its name is longer than 245 bytes",
        ),
        (f"{'n' * 256}/new", "a name in it is longer than 255 bytes"),
    ):
        with pytest.raises(WriteError) as error:
            check(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: cannot be written ({reason})"
    with pytest.raises(
        WriteError, match=r"dangling: cannot be written .it is a symbolic link to nowhere"
    ):
        check(tmp_path / "dangling")

    def full(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(WriteError, match="Read-only file system"):
        check(tmp_path / "new")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(WriteError, match=f"{tmp_path} is not a writable folder"):
        check(tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]


def test_rejects_files_of_other_programs(tmp_path):
    (tmp_path / "ours").write_bytes(b"ours")
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    check_file(tmp_path / "ours")
    for name in ("mine", "link", "pipe"):
        with pytest.raises(
            WriteError,
            match=f"{name}: exists and is not a report, so it is not replaced; name another file",
        ):
            check_file(tmp_path / name)
    with pytest.raises(WriteError, match="it is a folder"):
        check_file(tmp_path / "folder")
    with pytest.raises(WriteError, match=r"mine: cannot be written .* is not a writable folder"):
        destination.check_folder(tmp_path / "mine")


@pytest.mark.parametrize("path", ["", ".", "..", "/"])
def test_rejects_new_paths_without_a_name(path):
    with pytest.raises(WriteError, match=r"cannot be written \(name a new file or folder\)"):
        destination.check_new(Path(path))


def test_rejects_names_without_room_for_the_temporary_file(tmp_path):
    from fcn_jax.runtime import atomic

    longest = tmp_path / f"{'n' * 241}.txt"
    check_file(longest)
    atomic.write_text(longest, "text")
    assert longest.read_text() == "text"
    destination.check_new(tmp_path / ("f" * 245))
    with atomic.new_folder(tmp_path / ("f" * 245)):
        pass
    with pytest.raises(WriteError, match="its name is longer than 245 bytes"):
        check_file(tmp_path / f"{'n' * 242}.txt")
