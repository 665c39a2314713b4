"""What importing a plugin costs: in time, and in what it drags in."""

from __future__ import annotations

import dataclasses

from fcn_jax.plugins.isolation import ask_child, lifeline
from fcn_jax.plugins.registry import Entry

HEAVY = ("torch", "torchvision", "tensorflow")
"""What a plugin imports inside functions only: whoever uses it without them must not need them."""

# What any plugin may import at no cost to anyone, since fcn-jax has imported it when it builds or
# reads something.
_MEASURE = """
import json, sys, time
import flax.nnx, jax, numpy
import fcn_jax.pytorch.rules, fcn_jax.data.datasets.directory, fcn_jax.nn, fcn_jax.models.segmenter
from fcn_jax.errors import PluginError
from fcn_jax.plugins.registry import Entry, load
answer, *fields = sys.argv[1:]
before = set(sys.modules)
start = time.perf_counter()
try:
    load(Entry(*fields))
    reason = None
except PluginError as error:
    reason = str(error)
seconds = time.perf_counter() - start
found = {"reason": reason, "seconds": seconds, "modules": sorted(set(sys.modules) - before)}
with open(answer, "w", encoding="utf-8") as file:
    json.dump(found, file)
"""


@dataclasses.dataclass(frozen=True)
class ImportCost:
    """What one import took.

    Attributes:
        fault: why the plugin does not load; None if it does.
        seconds: over what fcn_jax itself has imported.
        modules: how many came in.
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
        timeout: seconds after which the process is killed, above 0. Importing fcn_jax itself
            counts.
    """
    with lifeline() as held:
        answer, fault = ask_child(_MEASURE, dataclasses.astuple(entry), timeout, held)
    if answer is None:
        return ImportCost(fault)
    heavy = tuple(name for name in HEAVY if name in answer["modules"])
    return ImportCost(answer["reason"], answer["seconds"], len(answer["modules"]), heavy)
