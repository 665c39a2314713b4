"""The plugin under test, and small tools that all checks share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax.numpy as jnp
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
    """A plugin under test, or a part of it.

    Attributes:
        label: its name in messages.
        progress: called with each check's name.
    """

    label: str
    progress: Progress = ignore

    def part(self, name: str) -> Subject:
        """A part of it; `name` is appended to the label."""
        return Subject(self.label + name, self.progress)

    def start(self, check: str) -> None:
        """Report that a check begins."""
        self.progress(f"{self.label}: {check}")

    def fail(self, message: str) -> NoReturn:
        """Raise `AssertionError`: a promise is broken."""
        raise AssertionError(f"{self.label}: {message}")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that a plugin builds.

    Attributes:
        subject: the plugin.
        builder: (`dtype`, `param_dtype`, `rngs`) -> module.
        call: (module, inputs) -> outputs by name.
    """

    subject: Subject
    builder: Callable[..., nnx.Module]
    call: Callable[[Any, Sequence[Any]], Any]

    def build(self, dtype: Any = jnp.float32) -> nnx.Module:
        """The module with float32 parameters."""
        return self.builder(dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Normal f32 values. From numpy, since JAX would compile each operation for each shape."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def difference(found: Any, expected: Any) -> float:
    """Largest absolute difference, relative to the largest absolute expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
