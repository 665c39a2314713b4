"""Time and memory by batch, image size, classes and depth: `python -m benchmarks.curves`.

    python -m benchmarks.curves                 # all curves, 1 to 2 hours on 2 cores
    python -m benchmarks.curves classes --kind training --rounds 5

The library is compared with eager PyTorch on the network of `python -m benchmarks`. Each curve
varies one value: the batch, the image size, the number of classes, or the depth. Classes are varied
for the dense head, whose kernel grows with the square of their number, and for the depthwise head.
Time and memory are those of inference and of a training step after the first call, which compiles.
Each point is written to benchmarks/results/curves_cpu.json at once. Points that are not measured
again stay. A plot is written next to the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tasks, timing
from benchmarks.arguments import Parser
from benchmarks.record import RESULTS, environment, keep, prepare_backend
from benchmarks.setting import Setting
from benchmarks.worker import workers

OUT = RESULTS / "curves_cpu.json"
CONTENDERS = (tasks.LIBRARY, tasks.EAGER)
KINDS = ("inference", "training")
BASE = Setting(batch=1)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve that varies one value.

    Attributes:
        title: title of the axis.
        settings: value on the axis -> setting.
        most: largest value for training; PyTorch takes minutes per step for larger ones.
        task: task for inference; masks cannot have labels above 255.
    """

    title: str
    settings: Mapping[int, Setting]
    most: float = math.inf
    task: str = "mask"

    def of(self, kind: str) -> Mapping[int, Setting]:
        """Return the points for inference or training."""
        return {
            value: setting
            for value, setting in self.settings.items()
            if kind == "inference" or value <= self.most
        }


def _varied(field: str, values: Sequence[int], **others: Any) -> dict[int, Setting]:
    return {value: dataclasses.replace(BASE, **{field: value}, **others) for value in values}


CURVES = {
    "batch": Curve("images in a batch", _varied("batch", (1, 2, 4, 8, 16, 32, 64))),
    "size": Curve(
        "height and width, pixels",
        {
            side: dataclasses.replace(BASE, size=(side, side))
            for side in (128, 256, 512, 1024, 2048)
        },
    ),
    "classes": Curve(
        "classes, dense head", _varied("num_classes", (2, 21, 64, 150, 256)), most=64, task="logits"
    ),
    "classes_depthwise": Curve(
        "classes, depthwise head",
        _varied("num_classes", (2, 21, 64, 150, 256, 1000), upsampling="depthwise"),
        task="logits",
    ),
    "depth": Curve(
        "depth of the ResNet",
        {
            depth: dataclasses.replace(BASE, model=f"resnet{depth}")
            for depth in (18, 34, 50, 101, 152)
        },
    ),
}


def measure(task: str, setting: Setting, rounds: int) -> dict[str, Any]:
    """Measure the seconds and bytes of every contender at one point."""
    with workers(task, setting, CONTENDERS) as found:
        tasks.check_agreement(
            task, {name: worker.answer for name, worker in found.items()}, setting.dtype
        )
        timings = timing.interleaved(found, rounds, warm_up=1)
        return {
            name: {
                "seconds": taken.median,
                "rounds": taken.seconds,
                "first_call_bytes": found[name].first_bytes,
                "bytes": found[name].close(),
            }
            for name, taken in timings.items()
        }


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot a column for each curve: time above, memory below; PyTorch's lines are dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    curves = {
        name: sorted((row for row in rows if row["curve"] == name), key=lambda row: row["value"])
        for name in CURVES
        if any(row["curve"] == name for row in rows)
    }
    figure, panels = pyplot.subplots(
        2, len(curves), figsize=(3.3 * len(curves), 6), squeeze=False, layout="constrained"
    )
    for column, (name, points) in enumerate(curves.items()):
        for panel, field, scale in (
            (panels[0][column], "seconds", 1.0),
            (panels[1][column], "bytes", 2.0**-30),
        ):
            for kind, color in (("inference", "#2c6fbb"), ("training", "#c8643c")):
                for contender, style in zip(
                    (c.name for c in CONTENDERS), ("-o", "--s"), strict=True
                ):
                    of_kind = [point for point in points if point["kind"] == kind]
                    if not of_kind:
                        continue
                    panel.plot(
                        [point["value"] for point in of_kind],
                        [point["contenders"][contender][field] * scale for point in of_kind],
                        style,
                        color=color,
                        markersize=3,
                        linewidth=1.2,
                        label=f"{kind}, {contender}",
                    )
            panel.set_xscale("log")
            panel.set_yscale("log")
            values = sorted({point["value"] for point in points})
            panel.set_xticks(values, [str(value) for value in values], fontsize=7)
            panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
            panel.spines[["top", "right"]].set_visible(False)
        panels[1][column].set_xlabel(CURVES[name].title)
    panels[0][0].set_ylabel("seconds per call")
    panels[1][0].set_ylabel("memory after the first call, GiB")
    panels[0][0].legend(fontsize=7)
    devices = " and ".join(sorted({row["environment"]["device"] for row in rows}))
    figure.suptitle(
        f"ResNet-18 FCN-32s, batch 1, 320x480, 21 classes except for the varied value; {devices}",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _curve(name: str) -> str:
    if name not in CURVES:
        raise argparse.ArgumentTypeError(f"unknown curve {name}; known are {', '.join(CURVES)}")
    return name


def main() -> None:
    """Measure and print all points; each point is written at once."""
    parser = Parser("benchmarks.curves", __doc__)
    parser.add_argument(
        "curves", nargs="*", type=_curve, help=f"one of {', '.join(CURVES)} (default: all)"
    )
    parser.add_argument("--kind", choices=KINDS, help="kind of task (default: both)")
    parser.add_argument("--values", type=int, nargs="+", help="points of each curve (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each contender")
    parser.add_argument(
        "--out", type=Path, default=OUT, help="JSON file; the plot is written next to it"
    )
    args = parser.parse_args()
    prepare_backend("cpu")
    kinds = (args.kind,) if args.kind else KINDS
    curves = {name: CURVES[name] for name in args.curves or CURVES}
    points = [
        (name, kind, value, setting)
        for name, curve in curves.items()
        for kind in kinds
        for value, setting in curve.of(kind).items()
        if not args.values or value in args.values
    ]
    if not points:
        known = sorted(
            {value for curve in curves.values() for kind in kinds for value in curve.of(kind)}
        )
        parser.error(f"--values: no such point; known are {', '.join(map(str, known))}")
    for name, kind, value, setting in points:
        found = measure(
            "training" if kind == "training" else CURVES[name].task, setting, args.rounds
        )
        key = {"curve": name, "kind": kind, "value": value}
        row = {
            "setting": dataclasses.asdict(setting),
            "environment": environment("cpu"),
            "contenders": found,
        }
        rows = keep(args.out, key, row)
        cells = ", ".join(
            f"{contender} {row['seconds']:.3f} s {row['bytes'] / 2**30:.2f} GiB"
            for contender, row in found.items()
        )
        print(f"{name} {value}, {kind}: {cells}", flush=True)
        draw(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
