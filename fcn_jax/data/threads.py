"""Work on threads, for functions that decode files: these run outside Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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
    with ThreadPoolExecutor(thread_count()) as pool:
        for start in range(0, len(items), _PORTION):
            for result in pool.map(function, items[start : start + _PORTION]):
                results.append(result)
                progress(len(results), len(items))
    return results
