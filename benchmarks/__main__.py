"""Speed of fcn_jax next to PyTorch and plain Flax: `python -m benchmarks`.

    python -m benchmarks                              # inference and training
    python -m benchmarks --task training --batch 8 --model resnet50
    python -m benchmarks --model deeplabv3_resnet50 --batch 1

`python -m benchmarks.models` measures a list of models.

All contenders have the same weights and inputs, and their results must agree before they are timed.
They run in turn, each in its own process. With `--processes N`, each contender runs in N processes,
one after the other, because one process may be faster than another.

PyTorch runs in channels_last. For inference, torch.compile folds the weights (inductor's freezing).
On GPUs it tunes every kernel (max-autotune). The contender "product head" is PyTorch with the
transposed convolution as a matrix product, as in this library. It shows how much of a difference is
due to that algorithm.

Memory is the peak of a process without the imported libraries. On GPUs, it is the peak of GPU
memory, including the tuning of kernels. The results are written to benchmarks/results as JSON after
each task, and as a plot.

In the printed table, "time ratio" is the time of a contender divided by that of fcn_jax, and "its
memory" is the peak of the first call.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import plot, tasks, timing
from benchmarks.arguments import Parser
from benchmarks.record import RESULTS, environment, prepare_backend
from benchmarks.setting import Setting
from benchmarks.worker import workers
from fcn_jax.errors import FcnJaxError
from fcn_jax.runtime.atomic import write_json

FILES = 64
"""Number of images for the tasks that read files."""
PHOTOGRAPHS = 16
"""Number of images for the task `photographs`, which takes longer."""

COLUMNS = {
    "median": 11,
    "quartiles": 17,
    "images/s": 11,
    "GFLOP/s": 11,
    "of peak": 11,
    "time ratio": 11,
    "first call": 11,
    "its memory": 11,
    "memory": 11,
}
"""Title -> width of the columns of the printed table."""


def measure(
    task: str,
    setting: Setting,
    rounds: int,
    peak: dict[str, float],
    contenders: Sequence[tasks.Contender],
    processes: int = 1,
) -> dict[str, Any]:
    """Time the contenders of a task and print a table.

    Args:
        task: one of `tasks.TASKS`.
        setting: model, inputs and device.
        rounds: timed calls in each process.
        peak: peak speeds of the device, from `timing.peaks`.
        contenders: the contenders, which must include the library.
        processes: processes of each contender, one after the other. The first one compiles; the
            next ones read the compiled programs from its cache.

    Returns:
        The task, its setting and the figures of each contender, ready for JSON.
    """
    seconds: dict[str, list[float]] = {one.name: [] for one in contenders}
    first_seconds = dict.fromkeys(seconds, 0.0)
    first_bytes = dict.fromkeys(seconds, 0)
    memory = dict.fromkeys(seconds, 0)
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
    print(" " * 28 + "".join(f"{title:>{width}}" for title, width in COLUMNS.items()))
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
            f"{row['speed_of_fcn_jax']:.2f}",
            f"{row['first_call_seconds']:.1f} s",
            f"{first_bytes[name] / 2**30:.2f} GiB",
            f"{memory[name] / 2**30:.2f} GiB",
        )
        print(
            f"{name:<28}"
            + "".join(
                f"{cell:>{COLUMNS[title]}}" for title, cell in zip(COLUMNS, cells, strict=True)
            ),
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
    """Return a setting with the images of `data` or, by default, of scenes drawn to `folder`."""
    if task not in tasks.READ_FILES:
        return setting
    from benchmarks import scenes  # requires OpenCV, which other tasks do not need

    if task == "photographs":
        setting = dataclasses.replace(setting, pictures=scenes.CAMERA, scale=(0.1, 0.3))
    root = data or folder / task
    if data is None and not root.exists():
        scenes.write(root, PHOTOGRAPHS if task == "photographs" else FILES, setting.pictures)
    return dataclasses.replace(setting, data=str(root))


def main() -> None:
    """Measure, print and write the results."""
    parser = Parser("benchmarks", __doc__)
    parser.add_argument(
        "--task",
        choices=tasks.TASKS,
        action="append",
        help=f"task to measure; may be repeated (default: {', '.join(tasks.MAIN)})",
    )
    parser.add_argument(
        "--model",
        default="resnet18",
        help="registered backbone or model; training requires a ResNet with the head fcn32s",
    )
    parser.add_setting(batch=4)
    parser.add_head_and_device()
    parser.add_argument("--num-classes", type=int, default=21, help="number of classes")
    parser.add_argument(
        "--torch-mode",
        choices=("max-autotune", "reduce-overhead", "default"),
        default="max-autotune",
        help="mode of torch.compile on GPUs",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed calls in each process")
    parser.add_argument(
        "--processes", type=int, default=1, help="processes of each contender, one after the other"
    )
    parser.add_argument(
        "--contender",
        choices=tasks.NAMES,
        action="append",
        help="contender to compare with the library; may be repeated (default: all)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder dataset for the tasks that read files (default: drawn scenes)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file; the plot is written next to it (default: "
        "benchmarks/results/speed_DEVICE.json)",
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
        parser.error("--processes must be at least 1 and --rounds at least 2")
    chosen = args.task or tasks.default(setting)
    if unable := set(chosen) - set(tasks.possible(setting)):
        parser.error(
            f"the task {', '.join(sorted(unable))} does not support {args.model}; possible are "
            f"{', '.join(tasks.possible(setting))}"
        )
    if setting.is_d2l and any(size % 32 for size in setting.size):
        parser.error("--size must be multiples of 32, because the contenders do not crop")
    peak = timing.peaks(args.dtype)
    print(
        f"peak speeds: {peak['flops'] / 1e9:.0f} GFLOP/s (matrix product), "
        f"{peak['bytes'] / 1e9:.1f} GB/s (copy)"
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
        for task, task_setting in settings.items():
            contenders = [
                one
                for one in tasks.contenders(task, task_setting)
                if one is tasks.LIBRARY or not args.contender or one.name in args.contender
            ]
            result["tasks"].append(
                measure(task, task_setting, args.rounds, peak, contenders, args.processes)
            )
            write_json(out, result)
    plot.draw(result, out.with_suffix(".png"))
    print(f"\nwritten: {out}, {out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
