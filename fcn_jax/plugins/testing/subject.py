"""What the contract's checks share: the network under test, and how a broken promise is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the largest absolute value, between two ways to compute one float32 tensor."""

# Each network runs once or twice, so that compiling it fast matters more than running it fast.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is checked: its name in messages, how to build it in a dtype, and how to run it on named inputs."""

    label: str
    build: Callable[[Any], nnx.Module]
    call: Callable[[Any, Any], Any]


def require(holds: bool, message: str) -> None:
    """Raise `AssertionError` with `message` unless the promise holds."""
    if not holds:
        raise AssertionError(message)


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Normal f32 of a shape. From numpy: outside jit, JAX would compile each operation anew for each shape."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def difference(found: Any, wanted: Any) -> float:
    """Largest difference, as a share of the largest absolute value wanted."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))
