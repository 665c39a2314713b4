"""Division of a dataset without splits into train and val, by a hash of the images' names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fcn_jax.data.datasets.directory import check_split
from fcn_jax.errors import DataError


def hash_split(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Divide names into "train" and "val" by a hash.

    "val" takes the names for which the first eight bytes of their SHA-256 are divisible by five. If
    that leaves one of two sides empty, the name of the lowest hash goes to "val", or the name of
    the highest to "train". A single name is in "train".

    Args:
        names: image names without ending.

    Returns:
        The names of each split, in the given order.
    """
    hashes = {
        name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names
    }
    val = {name for name, value in hashes.items() if value % 5 == 0}
    if len(hashes) > 1 and not val:
        val = {min(hashes, key=hashes.__getitem__)}
    elif len(val) == len(hashes) and val:
        val.remove(max(hashes, key=hashes.__getitem__))
    train = tuple(name for name in hashes if name not in val)
    return {"train": train, "val": tuple(name for name in hashes if name in val)}


def hash_part(names: Iterable[str], split: str, where: Path) -> tuple[str, ...]:
    """One of the parts of `hash_split`.

    Raises:
        DataError: there is no such part, or the names are too few for it.
    """
    parts = hash_split(names)
    check_split(split, parts, where)
    if parts["train"] and not parts[split]:
        raise DataError(
            f"{where}: one image cannot be divided into train and val; add images, or, to try the "
            f"training out, evaluate on the same image: --set data.{split}_split=train"
        )
    return parts[split]
