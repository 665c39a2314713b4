"""Timing of contenders in turn (A B C A B C), so that other load on the machine affects all."""

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
    """The times of one contender.

    Attributes:
        seconds: one value for each round.
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
"""Seconds. On a CPU, the previous call affects the time of a call that is shorter than this."""


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2, in_a_row: int = 1
) -> dict[str, Timing]:
    """Call each contender `warm_up` times, and then time all contenders in turn.

    On CPUs, an untimed call precedes each short timed call. PyTorch's OpenMP threads keep cores
    busy for a while after their work is done, and they start slowly after they have slept.

    Args:
        contenders: name -> a function that does the work and waits until it is done.
        rounds: number of timed calls of each contender, at least 2.
        warm_up: number of untimed calls before, at least 1.
        in_a_row: how many times one call does the work; its time is divided by this number.
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
    """Measure the peak speed of the device: FLOP/s of a matrix product, bytes/s of a copy.

    On CPUs, the product is the faster one of JAX and numpy; on other devices it is JAX's.

    Args:
        dtype: dtype of the product, "float32" or "bfloat16".
        rounds: number of calls; the fastest call counts.
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
    for name, variants in calls.items():
        timings = interleaved({str(i): call for i, call in enumerate(variants)}, rounds)
        best[name] = max(work[name] / min(timing.seconds) for timing in timings.values())
    return best
