"""Work on threads, for functions that decode files: these run outside Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_MAX_THREADS = 8
_PORTION = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count() -> int:
    """The number of cores, but at most 8."""
    return min(_MAX_THREADS, os.cpu_count() or 1)


def on_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    progress: Callable[[int, int], object] = lambda *_: None,
) -> list[Result]:
    """The result of a function for each item, in order, computed on threads.

    Args:
        function: the function.
        items: its arguments. They are taken in portions, so that an interruption waits for a few
            items only.
        progress: called with the number of items that are done, and the number of all.
    """
    results: list[Result] = []
    for result in each_on_threads(function, items):
        results.append(result)
        progress(len(results), len(items))
    return results


def each_on_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield the results of `on_threads` one after the other, and keep few of them in memory."""
    with ThreadPoolExecutor(thread_count()) as pool:
        for start in range(0, len(items), _PORTION):
            yield from pool.map(function, items[start : start + _PORTION])
