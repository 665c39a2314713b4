import os

import pytest

from fcn_jax.errors import WriteError
from fcn_jax.runtime import atomic


def test_replaces_the_file_at_the_end_and_makes_the_folder(tmp_path):
    path = tmp_path / "a" / "b.txt"
    atomic.write_text(path, "old")
    with atomic.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == ".txt"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["b.txt"]


def test_written_files_have_default_permissions(tmp_path):
    (tmp_path / "plain").touch()
    with atomic.replacing(tmp_path / "a.txt") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_failed_write_changes_nothing(tmp_path):
    path = tmp_path / "a.json"
    atomic.write_json(path, {"a": [1, 2]})
    before = path.read_text()
    with pytest.raises(TypeError):
        atomic.write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        atomic.write_text(path, "half \ud800")
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["a.json"]


def test_rejects_an_unwritable_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/a\.txt: cannot be written"):
        atomic.write_text(tmp_path / "file" / "a.txt", "")


def test_new_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a" / "new"
    with atomic.new_folder(path) as temporary:
        (temporary / "file").write_text("text")
        assert not path.exists()
    assert (path / "file").read_text() == "text"
    assert os.listdir(path.parent) == ["new"]


def test_failed_new_folder_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), atomic.new_folder(tmp_path / "new") as temporary:
        atomic.write_json(temporary / "half", {"a": {}["b"]})
    assert not os.listdir(tmp_path)


def test_new_folder_rejects_an_existing_path(tmp_path):
    (tmp_path / "old").mkdir()
    with (
        pytest.raises(WriteError, match=r"old exists; name a new folder"),
        atomic.new_folder(tmp_path / "old"),
    ):
        pass
    with (
        pytest.raises(WriteError, match="cannot be written"),
        atomic.new_folder(tmp_path / "new") as temporary,
    ):
        temporary.rmdir()
    assert os.listdir(tmp_path) == ["old"]
