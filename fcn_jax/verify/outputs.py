"""Names of a network's outputs, whatever structure they have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def by_name(outputs: Any) -> dict[str, Any]:
    """Arrays or tensors of an output by dotted name.

    A single one is "output"; the elements of a mapping have its keys as names, those of a tuple or
    list their numbers. None is left out, as in the outputs of transformers.
    """
    found = dict(_items(outputs, ()))
    return {".".join(path) or "output": value for path, value in found.items()}


def _items(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if value is None:
        return
    children: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        children = value.items()
    elif hasattr(value, "_fields"):
        children = zip(value._fields, value, strict=True)
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    else:
        yield path, value
        return
    for key, child in children:
        yield from _items(child, (*path, str(key)))
