"""The cost of large blocks that glibc returns to the system: `python -m benchmarks.allocator`.

The library and torch.compile each run in two processes: one with the defaults of glibc, one with
`fcn_jax.runtime.memory.tune_malloc`. Each process measures the seconds per call, and the CPU time
of the program and of the system. Rows are written to benchmarks/results/allocator_cpu.json.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.record import RESULTS, environment, prepare_backend
from benchmarks.tasks import COMPILED, LIBRARY
from fcn_jax.runtime.atomic import write_json

RESULT = RESULTS / "allocator_cpu.json"
CALLS = 9

_PROCESS = """
import json, resource, statistics, time
from fcn_jax.runtime.memory import disable_async_dispatch, tune_malloc
from fcn_jax.runtime.process import disable_loop_unrolling
if {keep}:
    assert tune_malloc()
disable_async_dispatch()
if {task!r} == "training":
    disable_loop_unrolling()
from benchmarks.setting import Setting
from benchmarks.tasks import Contender
call = Contender({name!r}, {framework!r}, {compiled}).prepare({task!r}, Setting())
for _ in range(2):
    call()
before, seconds = resource.getrusage(resource.RUSAGE_SELF), []
for _ in range({calls}):
    began = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - began)
after = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({{
    "seconds": statistics.median(seconds),
    "program_seconds": (after.ru_utime - before.ru_utime) / {calls},
    "system_seconds": (after.ru_stime - before.ru_stime) / {calls},
    "page_faults": (after.ru_minflt - before.ru_minflt) // {calls},
    "peak_bytes": after.ru_maxrss * 1024,
}}))
"""


def main() -> None:
    """Measure, print and write the results."""
    prepare_backend("cpu")
    rows = []
    for task in ("logits", "mask", "training"):
        for contender in (LIBRARY, COMPILED):
            for keep in (False, True):
                program = _PROCESS.format(
                    keep=keep,
                    name=contender.name,
                    framework=contender.framework,
                    compiled=contender.compiled,
                    task=task,
                    calls=CALLS,
                )
                done = subprocess.run(
                    [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True
                )
                row = {
                    "task": task,
                    "contender": contender.name,
                    "kept": keep,
                    **json.loads(done.stdout.splitlines()[-1]),
                }
                rows.append(row)
                print(
                    f"{task:<9} {contender.name:<14} {'tuned' if keep else 'default':<8} "
                    f"{row['seconds']:.3f} s per call; CPU time: {row['program_seconds']:.2f} s "
                    f"program, {row['system_seconds']:.2f} s system; "
                    f"peak {row['peak_bytes'] / 2**30:.2f} GiB",
                    flush=True,
                )
    write_json(RESULT, {"environment": environment("cpu"), "rows": rows})


if __name__ == "__main__":
    main()
