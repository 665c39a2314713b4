"""Archives are unpacked whole or not at all, and never beyond their folder."""

import errno
import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from fcn_jax.data.datasets import archives
from fcn_jax.data.datasets.folder import FOLDER
from fcn_jax.data.datasets.prepared import prepared
from fcn_jax.errors import DataError, WriteError
from tests.helpers.layouts import gray, photo


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_archive(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, contents in files.items():
                archive.writestr(name, contents)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, contents in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return path


ENDINGS = (".zip", ".tar", ".tgz")


@pytest.mark.parametrize("ending", ENDINGS)
def test_unpacks_once_without_files_of_systems(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"d/a.txt": b"a" * 1000, "d/e/b.txt": b"b", "__MACOSX/d/._a.txt": b"x", "d/.DS": b"x"}
    path = make_archive(tmp_path / f"set{ending}", files)
    folder = archives.unpacked([path])
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {"d/a.txt", "d/e/b.txt"}
    assert (folder / "d" / "a.txt").read_bytes() == b"a" * 1000
    monkeypatch.setattr(archives, "_unpack", None)
    assert archives.unpacked([path]) == folder


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", ["../evil.txt", "d/../../evil.txt", "/evil.txt", "..\\evil.txt"])
def test_refuses_paths_that_leave_the_folder(
    ending: str, name: str, tmp_path: Path, own_cache: Path
) -> None:
    path = make_archive(tmp_path / f"set{ending}", {"a.txt": b"a", name: b"evil"})
    with pytest.raises(DataError, match=r"the archive is refused, because the path '.*evil\.txt'"):
        archives.unpacked([path])
    assert not list((own_cache / "datasets").iterdir())
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret"])
def test_refuses_links_that_leave_the_folder(target: str, tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, target
        archive.addfile(member)
    with pytest.raises(DataError, match=r"link.*the archive is refused"):
        archives.unpacked([path])


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", ["half", "empty", "other", "changed"])
def test_damaged_archives_are_one_line_and_leave_nothing(
    ending: str, kind: str, tmp_path: Path, own_cache: Path
) -> None:
    path = make_archive(tmp_path / f"set{ending}", {"a": os.urandom(20_000), "b": b"b" * 20_000})
    whole = path.read_bytes()
    broken = {
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "other": b"no archive " * 100,
        "changed": whole[:3000] + bytes(64) + whole[3064:],
    }
    if kind == "changed" and ending == ".tar":
        pytest.skip("tar has no checksum of contents")
    path.write_bytes(broken[kind])
    with pytest.raises(DataError, match=rf"set{ending}: cannot unpack the archive") as caught:
        archives.unpacked([path])
    assert "\n" not in str(caught.value)
    assert not list((own_cache / "datasets").iterdir())


def test_folder_dataset_is_read_from_an_archive(tmp_path: Path) -> None:
    root = tmp_path / "mydata"
    (root / "images").mkdir(parents=True)
    (root / "classes.txt").write_text("ground\nroad\n")
    for split in ("train", "val"):
        photo(root / "images" / split / f"{split}.jpg")
        gray(root / "masks" / split / f"{split}.png", 0, 1)
    path = tmp_path / "upload.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(tmp_path))
    source = FOLDER.open(path, "val")
    assert source.decode(source[0]).mask[0, [0, 31]].tolist() == [0, 1]


# ------------------------------------------------------------------------------ prepared folders


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, own_cache: Path) -> None:
    def full(folder: Path) -> None:
        (folder / "first").write_text("some")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = tmp_path / "source"
    source.write_text("")
    with pytest.raises(WriteError) as caught:
        prepared("set", [source], full)
    message = str(caught.value)
    assert "No space left on device" in message
    assert "FCN_JAX_CACHE" in message
    assert "\n" not in message
    assert not list((own_cache / "datasets").iterdir())


def test_quicker_process_wins(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("")

    def slow(folder: Path) -> None:
        (folder / "by").write_text("the second")
        prepared("set", [source], lambda other: (other / "by").write_text("the first") and None)

    assert (prepared("set", [source], slow) / "by").read_text() == "the first"


def test_killed_preparation_is_not_taken_for_a_complete_one(
    tmp_path: Path, own_cache: Path
) -> None:
    source = tmp_path / "source"
    source.write_text("")
    code = (
        "import sys, time, pathlib\n"
        "from fcn_jax.data.datasets.prepared import prepared\n"
        "def make(folder):\n"
        "    (folder / 'a').write_text('half'); print('half', flush=True); time.sleep(60)\n"
        "prepared('set', [pathlib.Path(sys.argv[1])], make)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(source)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()

    def whole(folder: Path) -> None:
        (folder / "b").write_text("whole")

    folder = prepared("set", [source], whole)
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_changed_sources_are_prepared_again(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("1")

    def copy(folder: Path) -> None:
        (folder / "copy").write_text(source.read_text())

    first = prepared("set", [source], copy)
    source.write_text("2")
    os.utime(source, ns=(0, time.time_ns()))
    assert (prepared("set", [source], copy) / "copy").read_text() == "2"
    assert (first / "copy").read_text() == "1"
