"""Google Cloud Storage, imitated by a local folder.

Paths are read and written through fsspec, and arrays through TensorStore, as with the real store.
There are no folders: one exists as long as there is a file in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.local import LocalFileSystem
from orbax.checkpoint._src.path import gcs_utils


class Bucket(LocalFileSystem):
    """The part of gcsfs that etils uses."""

    protocol = "gcs"
    cachable = False
    root: ClassVar[str] = "/nonexistent"

    def __init__(self, **_: Any) -> None:
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = os.fspath(path)
        if text.startswith("gs://"):
            text = f"{cls.root}/{text[5:]}"
        return LocalFileSystem._strip_protocol(text)

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        if "w" in mode:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        return super()._open(path, mode, **more)

    def glob(self, path: str, **more: Any) -> list[str]:
        return [found.removeprefix(f"{self.root}/") for found in super().glob(path, **more)]

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def isdir(self, path: str) -> bool:
        return any(files for _, _, files in os.walk(self._strip_protocol(path)))

    def exists(self, path: str, **_: Any) -> bool:
        return self.isfile(path) or self.isdir(path)


@contextmanager
def served(folder: Path) -> Iterator[None]:
    """Serve a folder as gs://."""

    def kvstore(path: str) -> dict[str, str]:
        is_file = Path(path).name.startswith("_")  # such as _sharding
        local = f"{folder}/{path.removeprefix('gs://')}"
        return {"driver": "file", "path": local if is_file else f"{local}/"}

    before = dict(fsspec.registry)
    backend.fsspec_backend._get_filesystem.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bucket, "root", str(folder))
        patch.setattr(gcs_utils, "get_kvstore_for_gcs", kvstore)
        fsspec.register_implementation("gcs", Bucket, clobber=True)
        yield
    backend.fsspec_backend._get_filesystem.cache_clear()
    fsspec.register_implementation("gcs", before.get("gcs", "gcsfs.GCSFileSystem"), clobber=True)
