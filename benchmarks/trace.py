"""Where the library's time goes, by kind of compiled operation: `python -m benchmarks.trace logits`.

    python -m benchmarks.trace training --processes 6
    python -m benchmarks.trace training --device cuda --dtype bfloat16 --batch 32

JAX's own profiler on a task of `python -m benchmarks`. XLA names an operation after what it fuses;
on CPUs "ynn_fusion" are matrix products, "subtract_bitcast_fusion" Winograd's input transforms,
"maximum_pad_fusion" its output transforms with normalization, ReLU and the next border. With
several processes, one after the other, it shows which kinds make one slower than another. Written
to benchmarks/results/trace_TASK_DEVICE.json.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.record import RESULTS, environment, prepare_backend
from benchmarks.setting import Setting
from benchmarks.tasks import INFERENCE, LIBRARY, MAIN
from fcn_jax.runtime import process
from fcn_jax.runtime.atomic import write_json

CALLS = 10
"""Timed, and then traced, in each process."""


def traced(task: str, setting: Setting) -> dict[str, Any]:
    """Median seconds of a call in this process, and kind of operation -> how often a call does it, and milliseconds it takes together."""
    work = LIBRARY.prepare(task, setting)
    for _ in range(4):
        work()
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                work()
        (path,) = Path(folder).glob("plugins/profile/*/*.trace.json.gz")
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    kinds: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            # Of a CUDA graph the operation is the graph, and the kernel the fusion.
            operation = event["args"]["hlo_op"]
            name = event["name"] if operation.startswith("command_buffer") else operation
            kinds[re.sub(r"[._\d]+$", "", name)].append(event["dur"] / 1e3)
    found = {
        kind: {"count": len(taken) / CALLS, "milliseconds": sum(taken) / CALLS}
        for kind, taken in kinds.items()
    }
    return {"seconds": statistics.median(seconds), "kinds": found}


def main() -> None:
    """Trace each process, print the kinds that take longest, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trace", description=__doc__.splitlines()[0]
    )
    parser.add_argument("task", choices=MAIN)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--one", action="store_true", help=argparse.SUPPRESS
    )  # what each of the processes is started with
    args = parser.parse_args()
    if args.one:
        process.configure_process(trains=args.task not in INFERENCE)
        setting = Setting(
            batch=args.batch, size=tuple(args.size), dtype=args.dtype, device=args.device
        )
        print(json.dumps(traced(args.task, setting)))
        return
    prepare_backend(args.device)
    command = [sys.executable, "-m", "benchmarks.trace", *sys.argv[1:], "--one"]
    rows: list[dict[str, Any]] = []
    for _ in range(args.processes):
        rows.append(
            json.loads(
                subprocess.run(
                    command, stdout=subprocess.PIPE, check=True, text=True
                ).stdout.splitlines()[-1]
            )
        )
        print(f"process {len(rows)}: {rows[-1]['seconds'] * 1000:.1f} ms a call", flush=True)
    rows.sort(key=lambda row: row["seconds"])
    longest = sorted(rows[0]["kinds"], key=lambda kind: -rows[0]["kinds"][kind]["milliseconds"])[
        :10
    ]
    print(
        f"{'ms of each process, the fastest first':<40} "
        + " ".join(f"{row['seconds'] * 1000:7.1f}" for row in rows)
    )
    for kind in longest:
        taken = " ".join(
            f"{row['kinds'].get(kind, {}).get('milliseconds', 0):7.2f}" for row in rows
        )
        print(f"{rows[0]['kinds'][kind]['count']:5.0f} {kind:<34} {taken}")
    out = RESULTS / f"trace_{args.task}_{args.device}.json"
    setting = {"batch": args.batch, "size": args.size, "dtype": args.dtype}
    write_json(
        out, {"setting": setting, "environment": environment(args.device), "processes": rows}
    )
    print(out)


if __name__ == "__main__":
    main()
