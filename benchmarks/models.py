"""Inference of whole models beside PyTorch: `python -m benchmarks.models`.

    python -m benchmarks.models                              # torchvision's segmentation models and two of the FCN paper's
    python -m benchmarks.models fcn_resnet50 --rounds 10     # one of them again; the others' rows stay

Images to logits and to masks, each model against its PyTorch original with the same values, as
`python -m benchmarks` does it. Rows go to benchmarks/results/models_DEVICE.json as they come; the
table is of all rows that are there.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import tasks, timing
from benchmarks.__main__ import measure
from benchmarks.record import RESULTS, environment, keep, prepare_backend, rows
from benchmarks.setting import Setting

MODELS = (
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
    "fcn32s_vgg16",
    "fcn8s_vgg16",
)
CONTENDERS = [tasks.LIBRARY, tasks.EAGER, tasks.COMPILED]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown; the last column is the library's speed in torch.compile's."""
    lines = [
        f"| model | | GFLOP | {' | '.join(contender.name for contender in CONTENDERS)} | fcn_jax's speed in torch.compile's |",
        "|---|---|---|" + "---|" * (len(CONTENDERS) + 1),
    ]
    for row in found:
        seconds = [row["contenders"][contender.name]["seconds"] for contender in CONTENDERS]
        setting = row["setting"]
        height, width = setting["size"]
        work = f"{row['flops'] / 1e9:.1f}" if row["flops"] else ""
        lines.append(
            f"| `{setting['model']}` | {tasks.TASKS[row['task']]}, {setting['batch']}x{height}x{width}, {setting['dtype']} | {work} | "
            + " | ".join(f"{one:.3f} s" for one in seconds)
            + f" | {seconds[-1] / seconds[0]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write after every row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "models", nargs="*", help=f"registered models, or backbones; default: {', '.join(MODELS)}"
    )
    parser.add_argument("--head", default="fcn32s", help="of backbones; registered")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--out", type=Path, help="JSON file (default: benchmarks/results/models_DEVICE.json)"
    )
    args = parser.parse_args()
    prepare_backend(args.device)
    out = args.out or RESULTS / f"models_{args.device}.json"
    peak = timing.peaks(args.dtype)
    for model in args.models or MODELS:
        setting = Setting(
            model, args.batch, tuple(args.size), args.dtype, head=args.head, device=args.device
        )
        for task in tasks.INFERENCE:
            row = measure(task, setting, args.rounds, peak, CONTENDERS)
            key = {"task": task, "setting": dataclasses.asdict(setting)}
            keep(out, key, row | {"peaks": peak, "environment": environment(args.device)})
    print(f"\n{table(rows(out))}\n\n{out}")


if __name__ == "__main__":
    main()
