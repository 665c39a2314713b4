"""Archives of datasets, unpacked once into the cache."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fcn_jax.data.datasets.files import is_hidden
from fcn_jax.data.datasets.prepared import prepared
from fcn_jax.errors import DataError, listing
from fcn_jax.runtime.progress import Progress

_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name."""
    return path.name.lower().endswith(_ENDINGS)


def unpacked(paths: Sequence[Path]) -> Path:
    """The folder in the cache that holds the contents of archives, unpacked if necessary.

    Args:
        paths: zip and tar archives, whose files go into one folder; at least one.

    Raises:
        DataError: an archive is damaged or encrypted, or has a path that leaves the folder.
        WriteError: the folder cannot be written, for example because the disk is full.
    """

    def unpack(folder: Path) -> None:
        with Progress(f"unpacking {names}") as progress:
            progress.say(f"unpacking {names} into {folder.parent}")
            for path in paths:
                _unpack(path, folder, progress.advance)

    names = listing((path.name for path in paths), 3)
    return prepared(paths[0].name.partition(".")[0], paths, unpack)


def _unpack(path: Path, folder: Path, advance: Callable[[], None]) -> None:
    members = _zip_members if path.name.lower().endswith(".zip") else _tar_members
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot read the archive ({error.strerror})") from error
    try:
        with stream:
            for _ in members(stream, path, folder):
                advance()
    except tarfile.FilterError as error:
        raise DataError(f"{path}: {_one_line(error)}; the archive is refused") from error
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError,
        NotImplementedError,
    ) as error:  # fmt: skip
        raise DataError(
            f"{path}: cannot unpack the archive ({_one_line(error)}); download it again, or unpack "
            "it with another program and pass the folder"
        ) from error
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's errors on damaged data
            raise DataError(
                f"{path}: cannot unpack the archive ({error}); download it again"
            ) from error
        raise


def _zip_members(stream: BinaryIO, path: Path, folder: Path) -> Iterator[None]:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            _require_inside(path, member.filename)
            if not _is_unused(member.filename):
                archive.extract(member, folder)
            yield


def _tar_members(stream: BinaryIO, path: Path, folder: Path) -> Iterator[None]:
    with tarfile.open(fileobj=stream) as archive:
        for member in archive:
            _require_inside(path, member.name)
            if not _is_unused(member.name):
                # Refuses links that leave the folder, and devices.
                archive.extract(member, folder, filter="data")
            yield
        # The checksum of a compressed file is at its end, after the last member.
        while archive.fileobj is not None and archive.fileobj.read(1 << 20):
            pass


def _require_inside(path: Path, name: str) -> None:
    """Check that a member's path does not leave the folder into which it is unpacked."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or plain[1:2] == ":" or ".." in plain.split("/"):
        raise DataError(
            f"{path}: the archive is refused, because the path '{name}' in it leaves the folder "
            "into which it is unpacked"
        )


def _is_unused(name: str) -> bool:
    return any(is_hidden(part) for part in PurePosixPath(name).parts)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
