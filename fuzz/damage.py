"""Damage to the bytes of a file, as disks, networks, editors and interrupted copies cause it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Damage = Callable[[np.random.Generator, bytes], bytes]


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    """Change one to four bits."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    """Overwrite up to 16 bytes with random bytes."""
    at, run = _run(rng, data, 16)
    return data[:at] + rng.bytes(run) + data[at + run :]


def zero(rng: np.random.Generator, data: bytes) -> bytes:
    """Overwrite up to half of the file with zeros, as in a block that was never written."""
    at, run = _run(rng, data, max(2, len(data) // 2))
    return data[:at] + bytes(run) + data[at + run :]


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    """Cut off the end, as an interrupted copy does."""
    return data[: int(rng.integers(len(data)))]


def remove(rng: np.random.Generator, data: bytes) -> bytes:
    """Remove up to a quarter of the bytes."""
    at, run = _run(rng, data, max(2, len(data) // 4))
    return data[:at] + data[at + run :]


def insert(rng: np.random.Generator, data: bytes) -> bytes:
    """Insert up to 16 random bytes."""
    at, run = _run(rng, data, 16)
    return data[:at] + rng.bytes(run) + data[at:]


def repeat(rng: np.random.Generator, data: bytes) -> bytes:
    """Repeat up to a quarter of the bytes."""
    at, run = _run(rng, data, max(2, len(data) // 4))
    return data[: at + run] + data[at:]


def newlines(rng: np.random.Generator, data: bytes) -> bytes:
    """Translate line ends, as transfers in text mode do."""
    changed = data.replace(b"\r\n", b"\n") if rng.integers(2) else data.replace(b"\n", b"\r\n")
    return changed if changed != data else flip(rng, data)


ALL: dict[str, Damage] = {
    "flip": flip,
    "overwrite": overwrite,
    "zero": zero,
    "cut": cut,
    "remove": remove,
    "insert": insert,
    "repeat": repeat,
    "newlines": newlines,
}


def some(rng: np.random.Generator, data: bytes) -> bytes:
    """Apply a random kind of damage that changes the data."""
    while True:
        damaged = ALL[str(rng.choice(list(ALL)))](rng, data)
        if damaged != data:
            return damaged


def _run(rng: np.random.Generator, data: bytes, longest: int) -> tuple[int, int]:
    at = int(rng.integers(len(data)))
    return at, min(len(data) - at, int(rng.integers(1, longest + 1)))
