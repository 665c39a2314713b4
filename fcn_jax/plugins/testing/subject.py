"""The network under test, and small tools that all checks share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

TOLERANCE = 1e-4
"""Largest allowed relative difference between two ways to compute one float32 tensor."""

# Each network runs once or twice, so that compiling it fast matters more than running it fast.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}

Progress = Callable[[str], None]
"""A function that is called with each check's name before the check runs."""


def ignore(check: str) -> None:
    """The `Progress` that reports nothing."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network under test.

    Attributes:
        label: its name in messages.
        build: compute dtype -> module.
        call: (module, inputs by name) -> outputs by name.
        progress: called with each check's name.
    """

    label: str
    build: Callable[[Any], nnx.Module]
    call: Callable[[Any, Any], Any]
    progress: Progress = ignore

    def start(self, check: str) -> None:
        """Report that a check begins."""
        self.progress(f"{self.label}: {check}")


def require(holds: bool, message: str) -> None:
    """Raise `AssertionError` with `message` unless the promise holds."""
    if not holds:
        raise AssertionError(message)


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Normal f32 values. From numpy, since JAX would compile each operation for each shape."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def difference(found: Any, expected: Any) -> float:
    """Largest absolute difference, relative to the largest absolute expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
