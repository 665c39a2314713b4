"""fcn_jax against PyTorch and plain Flax, side by side: `python -m benchmarks`.

    python -m benchmarks                                        # inference and training on this machine
    python -m benchmarks --task training --batch 8 --model resnet50

The same weights and inputs for every contender, whose answers must agree before anything is timed; they run in turn. PyTorch runs in
channels_last; torch.compile folds the weights in inference (inductor's freezing) and tunes every kernel on GPUs (max-autotune).
"Product head" is PyTorch with the transposed convolution in the form that this library gives it, so that the ratio says more than that.
Results go to benchmarks/results as JSON and as a plot.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import plot, tasks, timing
from fcn_jax.atomic import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("fcn-jax", "jax", "jaxlib", "flax", "torch", "torchvision", "numpy")


def measure(task: str, setting: tasks.Setting, rounds: int, peak: dict[str, float]) -> dict[str, Any]:
    """Time one task with all its contenders, and print a table."""
    calls = {name: make() for name, make in tasks.contenders(task, setting).items()}
    first: dict[str, float] = {}
    answers = {}
    for name, call in calls.items():
        answers[name] = np.asarray(_first(call, name, first))
    tasks.check_agreement(task, answers, setting.dtype)
    timings = timing.interleaved(calls, rounds)
    work = tasks.flops(task, setting)
    ours = timings["fcn_jax"].median
    rows = {}
    print(
        f"\n{task}: {setting.model}, batch {setting.batch}, {setting.size[0]}x{setting.size[1]}, {setting.dtype}, {work / 1e9:.1f} GFLOP"
    )
    print(
        f"{'':<30}{'median':>10}{'quartiles':>18}{'images/s':>10}{'GFLOP/s':>9}{'of peak':>9}{'fcn_jax is':>12}{'first call':>12}"
    )
    for name, found in timings.items():
        low, high = found.spread
        row = {
            "seconds": found.median,
            "quartiles": [low, high],
            "rounds": found.seconds,
            "images_per_second": setting.batch / found.median,
            "flops_per_second": work / found.median,
            "share_of_peak": work / found.median / peak["flops"],
            "speed_of_fcn_jax": found.median / ours,
            "first_call_seconds": first[name],
        }
        rows[name] = row
        print(
            f"{name:<30}{found.median:>8.3f} s{f'{low:.3f} to {high:.3f}':>18}{row['images_per_second']:>10.1f}"
            f"{row['flops_per_second'] / 1e9:>9.0f}{row['share_of_peak']:>9.0%}{row['speed_of_fcn_jax']:>10.2f} x{first[name]:>10.1f} s",
            flush=True,
        )
    return {"task": task, "flops": work, "contenders": rows}


def _first(call: tasks.Call, name: str, seconds: dict[str, float]) -> Any:
    began = time.perf_counter()
    answer = call()
    seconds[name] = time.perf_counter() - began
    return answer


def environment(device: str) -> dict[str, Any]:
    """Versions and devices."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor()
    )
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{cpu}, {os.cpu_count()} cores",
        "jax_device": jax.devices()[0].device_kind,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=tasks.TASKS, action="append", help="default: all")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--num-classes", type=int, default=21)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--out", type=Path, help="JSON file; default: benchmarks/results/speed_DEVICE.json; the plot lies beside it"
    )
    args = parser.parse_args()
    if args.device == "cpu" and jax.default_backend() != "cpu":
        parser.error("JAX would run elsewhere: set JAX_PLATFORMS=cpu")
    setting = tasks.Setting(args.model, args.batch, tuple(args.size), args.dtype, args.num_classes, args.device)
    if any(size % 32 for size in setting.size):
        parser.error("the sizes must be multiples of 32, for the contenders do not crop")
    torch.manual_seed(0)
    peak = timing.peaks(args.dtype)
    print(f"peaks: {peak['flops'] / 1e9:.0f} GFLOP/s in a matrix product, {peak['bytes'] / 1e9:.1f} GB/s in a copy")
    results = [measure(task, setting, args.rounds, peak) for task in args.task or tasks.TASKS]
    out = args.out or RESULTS / f"speed_{args.device}.json"
    result = {
        "environment": environment(args.device),
        "setting": {
            "model": args.model,
            "batch": args.batch,
            "size": args.size,
            "dtype": args.dtype,
            "classes": args.num_classes,
        },
        "peaks": peak,
        "tasks": results,
    }
    write_json(out, result)
    plot.draw(result, out.with_suffix(".png"))
    print(f"\n{out}, {out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
