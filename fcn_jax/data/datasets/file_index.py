"""Files of a dataset, found by names as people write them in lists."""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.datasets import names
from fcn_jax.data.datasets.files import Files


class FileIndex:
    """Files by name, found under the spellings that a person would take for the same.

    Attributes:
        kind: "image" or "mask".
        files: the files.
        missing: the names that are looked for in vain.
        recased: the number of names that were found only in another case.
        in_subfolders: the number of names that were found only without their folder.
    """

    def __init__(self, kind: str, files: Files, where: Path) -> None:
        """Index files; `where` is the dataset's folder, to which paths are relative."""
        self.kind, self.files, self._where = kind, files, where
        self.missing: list[str] = []
        self.recased = self.in_subfolders = 0
        self._keys = {path: key for key, path in files.items()}
        self._folded: dict[str, list[str]] = {}
        self._bases: dict[str, list[str]] = {}
        for key in files:
            self._folded.setdefault(names.folded(key), []).append(key)
            if "/" in key:
                self._bases.setdefault(names.folded(names.base(key)), []).append(key)

    def spellings(self, name: str) -> list[str]:
        """The keys that differ from a name in case and Unicode form only."""
        return self._folded.get(names.folded(name), [])

    def find(self, name: str) -> str | None:
        """The key of a name: as it is, in another Unicode form, or in another case.

        None if there is none or more than one.
        """
        if name in self.files:
            return name
        keys = self.spellings(name)
        cased = [key for key in keys if names.composed(key) == names.composed(name)]
        if len(cased or keys) != 1:
            return None
        self.recased += not cased
        return (cased or keys)[0]

    def find_path(self, text: str) -> str | None:
        """The key of a name with or without ending and folders."""
        if text in self.files:
            return text
        parts = names.path_parts(text)
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            for name in (tail, names.stem(tail)):
                key = self.find(name)
                if key is not None:
                    return key
        below = self.below(text)
        if len(below) != 1:
            return None
        self.in_subfolders += 1
        return below[0]

    def locate(self, text: str) -> tuple[str, Path] | None:
        """The key and the file of a name. A path that leads to a file names that file."""
        if text not in self.files and (path := self.path(text)) is not None:
            return self._keys.get(path, path.stem), path
        key = self.find_path(text)
        return None if key is None else (key, self.files[key])

    def path(self, text: str) -> Path | None:
        """The image file to which a path in a list leads, relative to the dataset's folder."""
        plain = text.replace("\\", "/")
        if "/" not in plain or names.ending(plain) not in names.NAMED_SUFFIXES:
            return None
        relative, absolute = self._where / "/".join(names.path_parts(plain)), Path(plain)
        if relative.is_file():
            return relative
        return absolute if absolute.is_absolute() and absolute.is_file() else None

    def below(self, text: str) -> list[str]:
        """The keys of files in subfolders that have a name without those folders."""
        *above, last = names.path_parts(text) or [""]
        named = {folder for folder in above if folder.lower() not in ("images", "masks")}
        spelled = [names.folded(name) for name in (last, names.stem(last))]
        keys = [key for name in spelled for key in self._bases.get(name, [])]
        return [key for key in dict.fromkeys(keys) if named <= set(names.folders(key))]
