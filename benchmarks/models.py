"""Inference speed of all models next to PyTorch: `python -m benchmarks.models`.

    python -m benchmarks.models                          # all models, and `PAIRS`
    python -m benchmarks.models fcn_resnet50 --rounds 10 # one model; other rows stay

It measures images to logits and images to masks for each model and its PyTorch reference, which
have the same weights, as in `python -m benchmarks`. Rows are written to
benchmarks/results/models_DEVICE.json. The printed table has all rows of that file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import tasks, timing
from benchmarks.__main__ import measure
from benchmarks.arguments import Parser
from benchmarks.record import RESULTS, environment, keep, prepare_backend, rows
from benchmarks.setting import Setting
from fcn_jax.models.spec import registered_spec
from fcn_jax.plugins import registry

PAIRS = [("efficientnet_lite0", "fcn"), ("convnext_tiny", "fcn"), ("resnet18", "unet")]
"""Backbones with heads that are measured, too."""

CONTENDERS = [tasks.LIBRARY, tasks.EAGER, tasks.COMPILED]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table; the last column is the library's speedup over torch.compile."""
    lines = [
        f"| model | | GFLOP | {' | '.join(contender.name for contender in CONTENDERS)} | "
        "speedup over torch.compile |",
        "|---|---|---|" + "---|" * (len(CONTENDERS) + 1),
    ]
    for row in found:
        seconds = [row["contenders"][contender.name]["seconds"] for contender in CONTENDERS]
        setting = row["setting"]
        height, width = setting["size"]
        work = f"{row['flops'] / 1e9:.1f}" if row["flops"] else ""
        head = f", `{setting['head']}`" if registered_spec(setting["model"]).head is None else ""
        lines.append(
            f"| `{setting['model']}`{head} | {tasks.TASKS[row['task']]}, "
            f"{setting['batch']}x{height}x{width}, {setting['dtype']} | {work} | "
            + " | ".join(f"{one:.3f} s" for one in seconds)
            + f" | {seconds[-1] / seconds[0]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all models and print the table; each row is written at once."""
    parser = Parser("benchmarks.models", __doc__)
    parser.add_argument("models", nargs="*", help="registered models or backbones (default: all)")
    parser.add_setting(batch=1)
    parser.add_head_and_device()
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each contender")
    parser.add_argument(
        "--out", type=Path, help="JSON file (default: benchmarks/results/models_DEVICE.json)"
    )
    args = parser.parse_args()
    prepare_backend(args.device)
    out = args.out or RESULTS / f"models_{args.device}.json"
    peak = timing.peaks(args.dtype)
    names = args.models or [entry.name for entry in registry.default().entries("models")]
    pairs = [(name, args.head) for name in names] + ([] if args.models else PAIRS)
    for model, head in pairs:
        setting = Setting(
            model, args.batch, tuple(args.size), args.dtype, head=head, device=args.device
        )
        for task in tasks.INFERENCE:
            row = measure(task, setting, args.rounds, peak, CONTENDERS)
            key = {"task": task, "setting": dataclasses.asdict(setting)}
            keep(out, key, row | {"peaks": peak, "environment": environment(args.device)})
    print(f"\n{table(rows(out))}\n\nwritten: {out}")


if __name__ == "__main__":
    main()
