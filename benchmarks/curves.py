"""How cost grows with the work: `python -m benchmarks.curves`.

    python -m benchmarks.curves                 # every curve, an hour or two on 2 cores
    python -m benchmarks.curves classes --kind training --rounds 5

The library compared with eager PyTorch, on the network of `python -m benchmarks`, varying one of:
the batch, the image's size, the number of classes (with the dense head, whose kernel grows with
their square, and with a kernel for each class), or the depth. Seconds and memory of inference and
of a training step, after the first call, which compiles. Written to
benchmarks/results/curves_cpu.json point by point, keeping the others, with a plot next to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tasks, timing
from benchmarks.record import RESULTS, environment, keep, prepare_backend
from benchmarks.setting import Setting
from benchmarks.worker import workers

OUT = RESULTS / "curves_cpu.json"
CONTENDERS = (tasks.LIBRARY, tasks.EAGER)
KINDS = ("inference", "training")
BASE = Setting(batch=1)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One thing that is varied.

    Attributes:
        title: of the axis.
        settings: value on the axis -> setting.
        most: the largest value of training; beyond it PyTorch takes minutes a step.
        task: of inference; labels beyond 255 make no mask.
    """

    title: str
    settings: Mapping[int, Setting]
    most: float = math.inf
    task: str = "mask"

    def of(self, kind: str) -> Mapping[int, Setting]:
        """The points of inference or training."""
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
        "classes, a kernel for each",
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
    """Seconds and bytes of every contender at one point."""
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
    """A column for each curve: seconds above, memory below; PyTorch's lines are dashed."""
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
    panels[0][0].set_ylabel("seconds a call")
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
        raise argparse.ArgumentTypeError(f"there is no curve {name}; there are {', '.join(CURVES)}")
    return name


def main() -> None:
    """Measure, print, write after every point."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curves", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "curves", nargs="*", type=_curve, help=f"of {', '.join(CURVES)}; default: all"
    )
    parser.add_argument("--kind", choices=KINDS, help="default: both")
    parser.add_argument(
        "--values", type=int, nargs="+", help="these points of each curve; default: all"
    )
    parser.add_argument("--rounds", type=int, default=3)
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
        have = sorted(
            {value for curve in curves.values() for kind in kinds for value in curve.of(kind)}
        )
        parser.error(f"no such point: --values may be of {', '.join(map(str, have))}")
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
            f"{who} {row['seconds']:.3f} s {row['bytes'] / 2**30:.2f} GiB"
            for who, row in found.items()
        )
        print(f"{name} {value}, {kind}: {cells}", flush=True)
        draw(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
