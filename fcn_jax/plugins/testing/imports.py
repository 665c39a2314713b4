"""The cost of importing a plugin: time, and heavy packages that it imports."""

from __future__ import annotations

import dataclasses

from fcn_jax.plugins.isolation import run_isolated
from fcn_jax.plugins.registry import Entry

HEAVY = ("torch", "torchvision", "tensorflow")
"""Packages to import inside functions only, so that the plugin works without them."""

# Packages that fcn-jax imports anyway are imported first.
_MEASURE = """
import time
import flax.nnx, jax, numpy
import fcn_jax.pytorch.rules, fcn_jax.data.datasets.directory, fcn_jax.nn, fcn_jax.models.build
before = set(sys.modules)
start = time.perf_counter()
reason = fault(entries[0])
answer([reason, time.perf_counter() - start, sorted(set(sys.modules) - before)])
"""


@dataclasses.dataclass(frozen=True)
class ImportCost:
    """The cost of one import.

    Attributes:
        fault: why the plugin cannot be imported; None if it can.
        seconds: in addition to the import of fcn_jax itself.
        modules: number of imported modules.
        heavy: those of `HEAVY` among them.
    """

    fault: str | None
    seconds: float = 0.0
    modules: int = 0
    heavy: tuple[str, ...] = ()


def import_cost(entry: Entry, timeout: float = 60.0) -> ImportCost:
    """Import a plugin in a process of its own and measure it.

    Args:
        entry: from `Registry.entries`.
        timeout: seconds after which the process is killed, above 0. The import of fcn_jax itself
            counts.
    """
    answers, ending = run_isolated(_MEASURE, [entry], timeout)
    if not answers:
        return ImportCost(ending)
    reason, seconds, modules = answers[0]
    heavy = tuple(name for name in HEAVY if name in modules)
    return ImportCost(reason, seconds, len(modules), heavy)
