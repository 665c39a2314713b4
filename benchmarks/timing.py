"""Contenders run in turn, A B C A B C, so that other load on the machine affects all of them."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """One contender's times.

    Attributes:
        seconds: of each round.
    """

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median of the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile, in seconds."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


_SHORT = 1.0
"""Seconds of a call below which what went before it on a CPU counts."""


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2, in_a_row: int = 1
) -> dict[str, Timing]:
    """Call each contender `warm_up` times, and then in turn; a call returns when its work is done.

    On CPUs a call that is not timed comes before each short one that is: threads of OpenMP,
    PyTorch's, keep a core busy for a while after their work is done, and take a while to begin once
    they sleep.

    Args:
        contenders: by name; each does the whole of the work and waits for it.
        rounds: measured calls of each, at least 2.
        warm_up: calls of each before, at least 1.
        in_a_row: how many times a call does the work, whose time is divided by it.
    """
    on_cpu = jax.default_backend() == "cpu"
    primed = {}
    for name, call in contenders.items():
        for _ in range(warm_up):
            taken = _seconds(call)
        primed[name] = on_cpu and taken < _SHORT
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            if primed[name]:
                call()
            seconds[name].append(_seconds(call) / in_a_row)
    return {name: Timing(spent) for name, spent in seconds.items()}


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peaks(dtype: str, rounds: int = 5) -> dict[str, float]:
    """The best of the device: FLOP/s of a large matrix product, and bytes/s of a copy.

    On CPUs the better of JAX's and numpy's is taken; elsewhere JAX's.

    Args:
        dtype: of the product, "float32" or "bfloat16".
        rounds: calls of each, of which the fastest counts.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, count = (3072, 2**26) if on_cpu else (8192, 2**29)
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    x = jnp.zeros(count, jnp.float32)
    calls: dict[str, list[Callable[[], object]]] = {
        "flops": [lambda: product(a, a).block_until_ready()],
        "bytes": [lambda: copy(x).block_until_ready()],
    }
    if on_cpu and dtype == "float32":
        b = np.asarray(a)
        calls["flops"].append(lambda: b @ b)
    work = {"flops": 2.0 * size**3, "bytes": 2.0 * x.nbytes}
    best = {}
    for name, forms in calls.items():
        timings = interleaved({str(i): call for i, call in enumerate(forms)}, rounds)
        best[name] = max(work[name] / min(timing.seconds) for timing in timings.values())
    return best
