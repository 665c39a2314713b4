"""From nothing to the first result: a new process that trains one step, without and with what an earlier one has left in its cache.

    python -m benchmarks.startup

Seconds from the start of the process until the first training step (ResNet-18 FCN-32s, as in `python -m benchmarks`) is done, cold and
then with the compilation cache: JAX's, which the library's commands keep by themselves, and inductor's. Written to benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.record import RESULTS, environment
from benchmarks.tasks import COMPILED, LIBRARY, Contender
from fcn_jax.atomic import write_json

RESULT = RESULTS / "startup_cpu.json"
CONTENDERS = (LIBRARY, COMPILED)

_FIRST_STEP = """
from benchmarks.setting import Setting
from benchmarks.tasks import Contender
call = Contender({name!r}, {framework!r}, {compiled}).prepare("training", Setting())
print(float(call()))
"""


def seconds(contender: Contender, cache: str) -> float:
    """One process, whose caches lie in a folder."""
    program = _FIRST_STEP.format(name=contender.name, framework=contender.framework, compiled=contender.compiled)
    caches = {"JAX_COMPILATION_CACHE_DIR": f"{cache}/jax", "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **caches}, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure in turn, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="warm starts of each")
    args = parser.parse_args()
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for contender in CONTENDERS:
            found[contender.name] = {"cold_seconds": seconds(contender, f"{folder}/{contender.framework}")}
        warm: dict[str, list[float]] = {contender.name: [] for contender in CONTENDERS}
        for _ in range(args.rounds):
            for contender in CONTENDERS:
                warm[contender.name].append(seconds(contender, f"{folder}/{contender.framework}"))
    for name, row in found.items():
        row["warm_seconds"] = warm[name]
        print(f"{name:<16} cold {row['cold_seconds']:.1f} s, warm {min(warm[name]):.1f} s")
    write_json(RESULT, {"environment": environment("cpu"), "contenders": found})


if __name__ == "__main__":
    main()
