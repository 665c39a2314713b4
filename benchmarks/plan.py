"""Hold the bound of `fcn-jax plan` against a measured training step on the device at hand.

    python -m benchmarks.plan --batch 2 --size 160 240

The device's peak is measured: FLOP/s by a large matrix product, bytes/s by a copy. The plan's
bounds follow from these; then the compiled step is timed. A row for each setting is written to
benchmarks/results/plan_cpu.json, or plan_gpu.json on a GPU; other rows in it stay.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.arguments import Parser
from benchmarks.jax_tasks import compiled_step
from benchmarks.record import RESULTS, environment, keep
from benchmarks.setting import Setting
from benchmarks.timing import interleaved, peaks
from fcn_jax import config
from fcn_jax.plan.kinds import Kind
from fcn_jax.plan.plan import Plan, plan
from fcn_jax.plugins.api import Classes
from fcn_jax.runtime import process
from fcn_jax.runtime.compiler import compiler_options
from fcn_jax.train import setup

CLASSES = 21


def measured_kind(dtype: str) -> Kind:
    """Return the device at hand as a kind, with measured speeds."""
    speeds = peaks(dtype)
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Kind(
        name=device.device_kind,
        platform={"gpu": "cuda"}.get(device.platform, device.platform),
        bfloat16=speeds["flops"],
        tf32=speeds["flops"],
        float32=speeds["flops"],
        memory=stats.get("bytes_limit", ram),
        bandwidth=speeds["bytes"],
        linked=1,
        link=1.0,
        network=1.0,
        host=1,
        usable=1.0,
        sources=("measured by python -m benchmarks.plan",),
    )


def measured(
    recipe: config.Config, setting: Setting, rounds: int
) -> tuple[float, dict[str, float]]:
    """Return the median seconds of a training step, and XLA's figures for it."""
    classes = Classes(tuple(map(str, range(CLASSES))), ((0, 0, 0),) * CLASSES)
    _, state, step = setup.make(recipe, classes, 1000)
    batch = jax.device_put({"image": setting.images(), "mask": setting.labels()})
    began = time.perf_counter()
    compiled = compiled_step(step, state, batch, compiler_options())
    compile_seconds = time.perf_counter() - began

    def call() -> np.ndarray:
        nonlocal state
        state, metrics = compiled(state, batch)
        return np.asarray(metrics["loss"])

    seconds = interleaved({"step": call}, rounds)["step"].median
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return seconds, {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "memory": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "compile_seconds": compile_seconds,
    }


def compared(found: Plan, seconds: float, xla: dict[str, float]) -> dict[str, object]:
    """Return the figures of a row."""
    return {
        "peak": {"flops": found.kind.bfloat16, "bytes": found.kind.bandwidth},
        "plan": {
            "flops": sum(found.flops.values()),
            "bytes": found.bytes,
            "memory": found.total,
            "compute_seconds": found.compute_seconds,
            "bytes_seconds": found.bytes_seconds,
            "seconds": found.alone_seconds,
        },
        "xla": xla,
        "measured_seconds": seconds,
        "bound_over_measured": found.alone_seconds / seconds,
    }


def main() -> None:
    """Measure, print and write a row."""
    parser = Parser("benchmarks.plan", __doc__)
    parser.add_argument("--model", default="resnet18", help="registered backbone")
    parser.add_setting(batch=2)
    parser.add_argument("--rounds", type=int, default=8, help="timed steps")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    process.configure_process(trains=True)
    size = tuple(args.size)
    recipe = config.parse(
        {
            "model": {"backbone": args.model, "dtype": args.dtype},
            "data": {"batch_size": args.batch, "crop_size": list(size)},
        }
    )
    found = plan(recipe, measured_kind(args.dtype), 1, CLASSES)
    setting = Setting(args.model, args.batch, size, args.dtype, CLASSES)
    row = compared(found, *measured(recipe, setting, args.rounds))
    name = "cpu" if jax.default_backend() == "cpu" else "gpu"
    out = args.out or RESULTS / f"plan_{name}.json"
    key = {"model": args.model, "batch": args.batch, "size": list(size), "dtype": args.dtype}
    keep(out, key, row | {"environment": environment({"gpu": "cuda"}.get(name, name))})
    print(
        f"bound {found.alone_seconds:.3f} s, measured {row['measured_seconds']:.3f} s: "
        f"{row['bound_over_measured']:.0%} of the bound's speed; memory {found.total / 1e9:.3f} GB "
        f"planned, {row['xla']['memory'] / 1e9:.3f} GB by XLA\nwritten: {out}"  # type: ignore[index]
    )


if __name__ == "__main__":
    main()
