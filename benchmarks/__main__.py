"""fcn_jax against PyTorch and plain Flax, side by side: `python -m benchmarks`.

    python -m benchmarks                              # inference and training on this machine
    python -m benchmarks --task training --batch 8 --model resnet50
    python -m benchmarks --model deeplabv3_resnet50 --batch 1   # `python -m benchmarks.models`
    measures a list of them

The same weights and inputs for every contender, whose answers must agree before anything is timed;
they run in turn, each in a process of its own, or in several after each other, as one process may
be faster than the next. PyTorch runs in channels_last; torch.compile folds the weights in inference
(inductor's freezing) and tunes every kernel on GPUs (max-autotune). "Product head" is PyTorch with
the transposed convolution in the form that this library gives it, so that the ratio says more than
that. Memory is what a process held at most beyond the libraries themselves, on GPUs the GPU's,
tuning included. Results go to benchmarks/results as JSON, task by task, and as a plot.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import plot, tasks, timing
from benchmarks.record import RESULTS, environment, prepare_backend
from benchmarks.setting import Setting
from benchmarks.worker import workers
from fcn_jax.errors import FcnJaxError
from fcn_jax.runtime.atomic import write_json

FILES = 64
"""Images of the tasks that read files."""
PHOTOGRAPHS = 16
"""The same for a camera's, which take longer."""


def measure(
    task: str,
    setting: Setting,
    rounds: int,
    peak: dict[str, float],
    contenders: Sequence[tasks.Contender],
    processes: int = 1,
) -> dict[str, Any]:
    """Time one task with its contenders, the library among them, and print a table.

    The rounds are done by so many processes of each contender, one after the other, since a process
    may be faster than another. The first of them finds nothing compiled, the others what it has
    left in its cache.
    """
    seconds: dict[str, list[float]] = {one.name: [] for one in contenders}
    first_seconds, first_bytes, memory = (
        dict.fromkeys(seconds, 0.0),
        dict.fromkeys(seconds, 0),
        dict.fromkeys(seconds, 0),
    )
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(processes):
            with workers(task, setting, contenders, Path(cache)) as started:
                tasks.check_agreement(
                    task, {name: worker.answer for name, worker in started.items()}, setting.dtype
                )
                for name, timed in timing.interleaved(
                    started, rounds, warm_up=1, in_a_row=tasks.in_a_row(task, setting)
                ).items():
                    seconds[name] += timed.seconds
                    first_seconds[name] = first_seconds[name] or started[name].first_seconds
                    first_bytes[name] = max(first_bytes[name], started[name].first_bytes)
                    memory[name] = max(memory[name], started[name].close())
    timings = {name: timing.Timing(taken) for name, taken in seconds.items()}
    work, images = tasks.flops(task, setting), tasks.images(task, setting)
    ours = timings[tasks.LIBRARY.name].median
    height, width = setting.size
    amount = f", {work / 1e9:.1f} GFLOP" if work else ""
    print(
        f"\n{task}, {tasks.TASKS[task]}: {setting.model}, batch {setting.batch}, "
        f"{height}x{width}, {setting.dtype}{amount}"
    )
    columns = (
        "median",
        "quartiles",
        "images/s",
        "GFLOP/s",
        "of peak",
        "fcn_jax is",
        "first call",
        "its memory",
        "memory",
    )
    print(
        f"{'':<28}" + "".join(f"{title:>{17 if title == 'quartiles' else 11}}" for title in columns)
    )
    rows = {}
    for name, found in timings.items():
        low, high = found.spread
        row = {
            "seconds": found.median,
            "quartiles": [low, high],
            "rounds": found.seconds,
            "images_per_second": images / found.median,
            "flops_per_second": work and work / found.median,
            "share_of_peak": work and work / found.median / peak["flops"],
            "speed_of_fcn_jax": found.median / ours,
            "first_call_seconds": first_seconds[name],
            "first_call_bytes": first_bytes[name],
            "bytes": memory[name],
        }
        rows[name] = row
        rate, share = (
            (f"{work / found.median / 1e9:.0f}", f"{row['share_of_peak']:.0%}")
            if work
            else ("", "")
        )
        cells = (
            f"{found.median * 1000:.1f} ms",
            f"{low * 1000:.1f} to {high * 1000:.1f}",
            f"{row['images_per_second']:.1f}",
            rate,
            share,
            f"{row['speed_of_fcn_jax']:.2f} x",
            f"{row['first_call_seconds']:.1f} s",
            f"{first_bytes[name] / 2**30:.2f} GiB",
            f"{memory[name] / 2**30:.2f} GiB",
        )
        print(
            f"{name:<28}"
            + "".join(f"{cell:>{17 if i == 1 else 11}}" for i, cell in enumerate(cells)),
            flush=True,
        )
    return {
        "task": task,
        "flops": work,
        "images": images,
        "setting": dataclasses.asdict(setting),
        "contenders": rows,
    }


def _with_files(setting: Setting, task: str, data: Path | None, folder: Path) -> Setting:
    """The setting with a task's images: those of `data`, or scenes drawn into `folder`."""
    if task not in tasks.READ_FILES:
        return setting
    from benchmarks import scenes  # only here is OpenCV needed

    if task == "photographs":
        setting = dataclasses.replace(setting, pictures=scenes.CAMERA, scale=(0.1, 0.3))
    root = data or folder / task
    if data is None and not root.exists():
        scenes.write(root, PHOTOGRAPHS if task == "photographs" else FILES, setting.pictures)
    return dataclasses.replace(setting, data=str(root))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--task", choices=tasks.TASKS, action="append", help=f"default: {', '.join(tasks.MAIN)}"
    )
    parser.add_argument(
        "--model",
        default="resnet18",
        help="a registered backbone or model; training only for ResNets with fcn32s",
    )
    parser.add_argument("--head", default="fcn32s", help="of a backbone; registered")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--num-classes", type=int, default=21)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--torch-mode",
        choices=("max-autotune", "reduce-overhead", "default"),
        default="max-autotune",
        help="torch.compile's, on GPUs",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each process")
    parser.add_argument(
        "--processes", type=int, default=1, help="of each contender, one after the other"
    )
    parser.add_argument(
        "--contender",
        choices=tasks.NAMES,
        action="append",
        help="compared with the library; default: all that can run a task",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of images and masks for the tasks that read files (default: drawn ones)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file (default: benchmarks/results/speed_DEVICE.json), with a plot next to it",
    )
    args = parser.parse_args()
    prepare_backend(args.device)
    setting = Setting(
        args.model,
        args.batch,
        tuple(args.size),
        args.dtype,
        args.num_classes,
        head=args.head,
        device=args.device,
        torch_mode=args.torch_mode,
    )
    try:
        setting.spec  # noqa: B018
    except FcnJaxError as error:
        parser.error(str(error))
    if args.processes < 1 or args.rounds < 2:
        parser.error("at least 1 process and 2 rounds")
    chosen = args.task or tasks.default(setting)
    if unable := set(chosen) - set(tasks.possible(setting)):
        parser.error(
            f"{args.model} has no {', '.join(sorted(unable))} here, only "
            f"{', '.join(tasks.possible(setting))}"
        )
    if setting.is_chapters and any(size % 32 for size in setting.size):
        parser.error("the sizes must be multiples of 32, for the contenders do not crop")
    peak = timing.peaks(args.dtype)
    print(
        f"peaks: {peak['flops'] / 1e9:.0f} GFLOP/s in a matrix product, {peak['bytes'] / 1e9:.1f} "
        "GB/s in a copy"
    )
    out = args.out or RESULTS / f"speed_{args.device}.json"
    result: dict[str, Any] = {
        "environment": environment(args.device),
        "setting": {
            "model": args.model,
            "head": setting.spec.head,
            "batch": args.batch,
            "size": args.size,
            "dtype": args.dtype,
            "classes": args.num_classes,
        },
        "peaks": peak,
        "tasks": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = {task: _with_files(setting, task, args.data, Path(folder)) for task in chosen}
        for task, of in settings.items():
            chosen_ones = [
                one
                for one in tasks.contenders(task, of)
                if one is tasks.LIBRARY or not args.contender or one.name in args.contender
            ]
            result["tasks"].append(
                measure(task, of, args.rounds, peak, chosen_ones, args.processes)
            )
            write_json(out, result)
    plot.draw(result, out.with_suffix(".png"))
    print(f"\n{out}, {out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
