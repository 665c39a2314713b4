"""Time of a training step with each loss, next to cross entropy: `python -m benchmarks.losses`.

    python -m benchmarks.losses                    # ResNet-18 FCN-32s, 21 classes, batch 4, 320x480
    python -m benchmarks.losses --loss dice --loss lovasz --rounds 15
    python -m benchmarks.losses --table            # only write the table of docs/losses.md

The library's training step runs with each loss in turn on the default device. All 21 classes occur
in each batch. Ratios are those of medians to cross entropy's: of the time of a step, and of the
processor time of all its threads, which other programs on the machine hardly change. A row for each
loss is written to benchmarks/results/losses_DEVICE.json, and those of CPUs to the table of
docs/losses.md.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.arguments import Parser
from benchmarks.jax_tasks import compiled_step
from benchmarks.record import RESULTS, environment, keep, rows
from benchmarks.setting import Setting, training_step
from benchmarks.timing import interleaved
from fcn_jax import compiler_options
from fcn_jax.api import LossContext
from fcn_jax.runtime import process
from fcn_jax.runtime.atomic import write_text
from fcn_jax.train import losses

BASE = "cross_entropy"

LOSSES: dict[str, dict[str, dict[str, Any]]] = {
    BASE: {"cross_entropy": {}},
    "class weights": {"cross_entropy": {"class_weights": "median_frequency"}},
    "label smoothing": {"cross_entropy": {"label_smoothing": 0.1}},
    "ohem": {"ohem": {}},
    "ohem, fraction": {"ohem": {"fraction": 0.2}},
    "focal": {"focal": {}},
    "focal, sigmoid": {"focal": {"sigmoid": True}},
    "dice": {"dice": {}},
    "jaccard": {"jaccard": {}},
    "tversky": {"tversky": {"alpha": 0.3, "beta": 0.7, "gamma": 1.5}},
    "lovasz": {"lovasz": {}},
    "lovasz, per image": {"lovasz": {"per_image": True}},
    "cross_entropy + dice": {"cross_entropy": {}, "dice": {}},
}
"""Name in the results -> the losses of a recipe."""


def made(setting: Setting, tables: dict[str, dict[str, Any]]) -> losses.Losses:
    """Build the losses of a recipe for the labels of a setting."""
    labels = setting.labels()
    images = [np.bincount(mask[mask != 255], minlength=setting.num_classes) for mask in labels]
    pixels = np.sum(images, axis=0)
    of_images = np.sum([(counts > 0) * counts.sum() for counts in images], axis=0)
    context = LossContext(setting.num_classes, "multiclass", pixels, of_images)
    return losses.build(losses.select(tables), context)


def prepared(setting: Setting, loss: losses.Losses) -> tuple[Callable[[], object], int, float]:
    """Compile a training step.

    Returns:
        A function that takes one step, the bytes of its temporaries, and the seconds to compile it.
    """
    state, step = training_step(setting, setting.build(), losses=loss)
    batch = jax.device_put({"image": setting.images(), "mask": setting.labels()})
    began = time.perf_counter()
    compiled = compiled_step(step, state, batch, compiler_options())
    took = time.perf_counter() - began

    def call() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    return call, compiled.memory_analysis().temp_size_in_bytes, took


PAGE = Path(__file__).parents[1] / "docs" / "losses.md"
BEGIN, END = "<!-- table of python -m benchmarks.losses -->", "<!-- end of the table -->"


def with_table(page: str, found: Sequence[Mapping[str, Any]]) -> str:
    """Return a page with the table of results between its two marks.

    Args:
        page: text with `BEGIN` and `END`.
        found: rows of a result file, of any settings.
    """
    settings = ("model", "batch", "size", "dtype", "num_classes")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in found:
        groups.setdefault(json.dumps([row[name] for name in settings]), []).append(row)
    lines = []
    for group in groups.values():
        first = group[0]
        height, width = first["size"]
        lines += [
            f"{first['model']}, batch {first['batch']}, {height}x{width}, "
            f"{first['num_classes']} classes, {first['dtype']}; {first['environment']['device']}, "
            f"JAX {first['environment']['jax']}:",
            "",
            "| loss | step / cross entropy's: processor time | time | ms | temporaries, MB |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['loss']} | {row['cpu_ratio']:.2f} | {row['ratio']:.2f} | "
            f"{row['seconds'] * 1e3:.0f} | "
            f"{row['temporary_bytes'] / 1e6:.0f} |"
            for row in group
        ]
        lines.append("")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([f"{before}{BEGIN}", "", *lines, f"{END}{after}"])


def main() -> None:
    """Compile the step with each loss, time all in turn, print and write the results."""
    parser = Parser("benchmarks.losses", __doc__)
    parser.add_argument("--model", default="resnet18", help="registered backbone or model")
    parser.add_setting(batch=4)
    parser.add_argument(
        "--loss",
        choices=LOSSES,
        action="append",
        help="loss to measure next to cross entropy; may be repeated (default: all)",
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed steps with each loss")
    parser.add_argument("--table", action="store_true", help="only write the table")
    args = parser.parse_args()
    if args.table:
        write_text(PAGE, with_table(PAGE.read_text(), rows(RESULTS / "losses_cpu.json")))
        return
    process.configure_process(trains=True)
    setting = Setting(args.model, args.batch, tuple(args.size), args.dtype)
    device = jax.default_backend()
    names = dict.fromkeys([BASE, *(args.loss or LOSSES)])
    found = {name: prepared(setting, made(setting, LOSSES[name])) for name in names}
    spent: dict[str, list[float]] = {name: [] for name in found}

    def counted(name: str) -> Callable[[], None]:
        def call() -> None:
            began = time.process_time()
            found[name][0]()
            spent[name].append(time.process_time() - began)

        return call

    timings = interleaved({name: counted(name) for name in found}, args.rounds)
    cpu = {name: statistics.median(values[2:]) for name, values in spent.items()}  # 2 warm up
    out = RESULTS / f"losses_{device}.json"
    for name, (_, temporaries, compiling) in found.items():
        ratio, cpu_ratio = timings[name].median / timings[BASE].median, cpu[name] / cpu[BASE]
        print(
            f"{name:<22} step {timings[name].median:7.3f} s  ratio {ratio:5.3f}  "
            f"processor time {cpu[name]:7.3f} s  ratio {cpu_ratio:5.3f}  "
            f"temporaries {temporaries / 1e6:6.0f} MB  compiled in {compiling:.1f} s"
        )
        key = {
            "model": args.model,
            "batch": args.batch,
            "size": args.size,
            "dtype": args.dtype,
            "num_classes": setting.num_classes,
            "loss": name,
        }
        row = {
            "seconds": timings[name].median,
            "quartiles": timings[name].spread,
            "ratio": ratio,
            "cpu_seconds": cpu[name],
            "cpu_ratio": cpu_ratio,
            "temporary_bytes": temporaries,
            "compile_seconds": compiling,
        }
        keep(out, key, row | {"environment": environment("cuda" if device == "gpu" else device)})
    if device == "cpu":
        write_text(PAGE, with_table(PAGE.read_text(), rows(out)))
    print(f"written: {out}")


if __name__ == "__main__":
    main()
