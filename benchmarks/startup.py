"""Seconds from the start of a process until its first training step is done.

    python -m benchmarks.startup

The network is that of `python -m benchmarks`. A cold start has empty compilation caches. A warm
start has the cached programs of JAX, whose cache the library's commands always use, or of
inductor. The library is also measured without `fcn_jax.runtime.process.disable_loop_unrolling`. The
results are written to benchmarks/results/startup_cpu.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

from benchmarks.arguments import Parser
from benchmarks.record import RESULTS, environment
from benchmarks.tasks import COMPILED, LIBRARY, Contender
from fcn_jax.runtime.atomic import write_json

RESULT = RESULTS / "startup_cpu.json"
CONTENDERS = {
    LIBRARY.name: (LIBRARY, {}),
    "fcn_jax, loops unrolled": (
        LIBRARY,
        {"XLA_FLAGS": "--xla_backend_extra_options=xla_cpu_unroll_loops=true"},
    ),
    COMPILED.name: (COMPILED, {}),
}
"""Name -> contender, environment variables. XLA ignores backend options that it does not know."""

_FIRST_STEP = """
from fcn_jax import process
process.configure_process(trains=True)
from benchmarks.setting import Setting
from benchmarks.tasks import Contender
call = Contender({name!r}, {framework!r}, {compiled}).prepare("training", Setting())
print(float(call()))
"""


def seconds(contender: Contender, variables: Mapping[str, str], cache: str) -> float:
    """Measure one process.

    Args:
        contender: the contender.
        variables: additional environment variables.
        cache: folder of the compilation caches.
    """
    program = _FIRST_STEP.format(
        name=contender.name, framework=contender.framework, compiled=contender.compiled
    )
    caches = {
        "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
    }
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **caches, **variables},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def main() -> None:
    """Measure the contenders in turn, print and write the results."""
    parser = Parser("benchmarks.startup", __doc__)
    parser.add_argument("--rounds", type=int, default=2, help="warm starts of each contender")
    args = parser.parse_args()
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, started in CONTENDERS.items():
            found[name] = {"cold_seconds": seconds(*started, f"{folder}/{name}")}
        warm: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for _ in range(args.rounds):
            for name, started in CONTENDERS.items():
                warm[name].append(seconds(*started, f"{folder}/{name}"))
    for name, row in found.items():
        row["warm_seconds"] = warm[name]
        print(f"{name:<24} cold {row['cold_seconds']:.1f} s, warm {min(warm[name]):.1f} s")
    write_json(RESULT, {"environment": environment("cpu"), "contenders": found})


if __name__ == "__main__":
    main()
