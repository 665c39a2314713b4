"""A cache of what masks hold, so that a second inspection only reads the files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fcn_jax.data.labels.mask_values import Histogram
from fcn_jax.data.source import Source
from fcn_jax.errors import WriteError
from fcn_jax.runtime import cache, json_text
from fcn_jax.runtime.atomic import write_text

_VERSION = 3
"""Version of the files. Raise it if `read_stored_mask` reads other values from the same file."""

_MAX_VALUES = 256
"""Masks with more distinct values are not kept: they are smoothed, or not label masks at all."""


def digest(data: bytes) -> str:
    """A digest of the contents of a file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class MaskCache:
    """Histograms by the digest of the mask's file, in one file for each split.

    The file begins with the digest of its other lines. A damaged file, or one of another version,
    counts as empty. Processes that write at the same time replace the file as a whole.

    Attributes:
        known: the histograms of the last inspection.
    """

    def __init__(self, source: Source) -> None:
        """Read the cache of a split, in the folder `masks` of `fcn_jax.runtime.cache`."""
        first, last = source[0], source[len(source) - 1]
        where = [str(r.mask.resolve()) if isinstance(r.mask, Path) else r.id for r in (first, last)]
        key = digest(json_text.dumps([where, len(source)]).encode())
        self._path = cache.folder() / "masks" / f"{key}.txt"
        self.known: dict[str, Histogram] = {}
        try:
            checksum, _, text = self._path.read_text(encoding="utf-8").partition("\n")
            content = json.loads(text)
            if checksum == digest(text.encode()) and content["version"] == _VERSION:
                self.known = {key: _unpacked(**packed) for key, packed in content["masks"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass

    def keep(self, histograms: Iterable[tuple[str, Histogram]]) -> None:
        """Write these histograms, by digest, and no others."""
        kept = {key: found for key, found in histograms if len(found.counts) <= _MAX_VALUES}
        if kept.keys() == self.known.keys():
            return
        packed = {
            key: dataclasses.asdict(found)
            | {"counts": list(found.counts.items()), "colors": list(found.colors.items())}
            for key, found in kept.items()
        }
        text = json_text.dumps({"version": _VERSION, "masks": packed})
        try:
            write_text(self._path, f"{digest(text.encode())}\n{text}")
        except WriteError:
            return  # the next inspection takes as long as this one; nothing else is lost


def _unpacked(counts: Any, colors: Any, **fields: Any) -> Histogram:
    return Histogram(counts=dict(counts), colors=dict(colors), **fields)
