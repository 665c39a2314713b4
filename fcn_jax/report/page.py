"""The page about one or several runs: one HTML file that needs no other."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.errors import ConfigError
from fcn_jax.eval.draw import IGNORED_COLOR
from fcn_jax.report import charts, confusion, settings, times
from fcn_jax.report.run import Run, Shown, read_runs
from fcn_jax.runtime import destination, json_text
from fcn_jax.runtime.atomic import write_text

_GENERATOR = "fcn-jax report"
_MARK = f'<meta name=generator content="{_GENERATOR}">'
_FOLDER = Path(__file__).parent

_CHARTS = (
    ("train", "loss", "training loss", True),
    ("val", "miou", "validation mIoU", False),
    ("val", "pixel_accuracy", "validation pixel accuracy", False),
    ("val", "mean_boundary_iou", "validation boundary mIoU", False),
    ("val", "ece", "validation calibration error (ECE)", False),
    ("train", "lr", "learning rate", False),
    ("train", "grad_norm", "norm of the gradient", True),
    ("train", "images_per_second", "training images per second", True),
)
"""Event and key of the values that are drawn, their title, and whether they are noisy."""


def write(runs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write a page about run directories.

    A run may be unfinished, without an evaluation and without pictures; the page says so.

    Args:
        runs: one or more run directories.
        output: the page, ending in `.html`; by default `report.html` in the directory of a single
            run, and in the current folder for several.

    Returns:
        The path of the page.

    Raises:
        ConfigError: another suffix, a run is named twice, or jinja2 is not installed.
        CheckpointError: a directory is not a run.
        WriteError: the page cannot be written, or an existing file is not such a page.
    """
    folders = [Path(run) for run in runs]
    found = read_runs(folders)
    path = Path(output) if output else (folders[0] if len(found) == 1 else Path()) / "report.html"
    if path.suffix.lower() != ".html":
        raise ConfigError(f"{path}: a report is a page; name a file that ends in .html")
    destination.check_file(path, _is_page, f"a page of {_GENERATOR}")
    write_text(path, page(found))
    return path


def _is_page(path: Path) -> bool:
    """Whether an existing file is such a page, by the generator at its beginning."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return _MARK.encode() in file.read(512)
    except OSError:
        return False


def page(runs: Sequence[Run]) -> str:
    """Return the page. Raises `ConfigError` without jinja2."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise ConfigError(
            f"the report needs the package {error.name}, which is not installed: pip install jinja2"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    drawn = _curves(runs)
    shown = [run.shown for run in runs]
    data = json_text.dumps([chart.data for chart in drawn])
    return environment.get_template("report.html.jinja").render(
        mark=Markup(_MARK),
        style=Markup((_FOLDER / "report.css").read_text("utf-8")),
        script=Markup((_FOLDER / "report.js").read_text("utf-8")),
        data=Markup(data.replace("<", "\\u003c")),
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        runs=runs,
        cards=[_card(run) for run in runs],
        charts=[(chart, Markup(chart.svg)) for chart in drawn],
        shown=shown,
        same_protocol=len({one.protocol for one in shown if one}) < 2,
        classes=_classes(shown),
        matrices=[_matrix(one) for one in shown],
        galleries=[_gallery(one) for one in shown],
        evaluations=[
            (run.name, _evaluation(folder.name, table))
            for run in runs
            for folder, table in run.evaluations
        ],
        differences=settings.differences([run.config for run in runs if run.config])
        if all(run.config for run in runs)
        else None,
        times=_times(runs),
        versions=_versions(runs),
        commands=[_command(run) for run in runs],
        configs=[json_text.dumps(run.config, indent=2) for run in runs],
    )


def _card(run: Run) -> dict[str, Any]:
    """The first facts about a run."""
    best, trained = run.best, run.events("train")
    speeds = [record["images_per_second"] for record in trained if record.get("images_per_second")]
    memory = [record["peak_memory_gib"] for record in trained if record.get("peak_memory_gib")]
    model, data = run.config.get("model", {}), run.config.get("data", {})
    facts = {
        "model": " + ".join(filter(None, (model.get("backbone"), model.get("head")))),
        "data": data.get("dataset"),
        "device": _devices(run),
        "speed": f"{charts.number(float(np.median(speeds)))} images/s" if speeds else None,
        "peak memory": f"{memory[-1]:.2f} GiB" if memory else None,
        "time": times.duration(sum(times.spent(run).values())) if run.records else None,
    }
    return {
        "name": run.name,
        "path": str(run.path),
        "status": run.status,
        "miou": None if best is None else f"{best['miou']:.4f}",
        "accuracy": None
        if best is None or best.get("pixel_accuracy") is None
        else f"{best['pixel_accuracy']:.4f}",
        "best_step": best and best["step"],
        "facts": {name: fact for name, fact in facts.items() if fact},
        "problems": run.problems,
    }


def _devices(run: Run) -> str:
    counts: Counter[str] = Counter(run.versions.get("devices", ()))
    return ", ".join(f"{n} x {kind}" if n > 1 else kind for kind, n in counts.items())


def _curves(runs: Sequence[Run]) -> list[charts.Chart]:
    """The curves for which at least one run has values."""

    def curves(event: str, value: Any) -> list[charts.Curve]:
        found = []
        for index, run in enumerate(runs):
            records = run.events(event)
            steps = [int(record["step"]) for record in records]
            found.append(charts.Curve(index, run.name, steps, [value(r) for r in records]))
        return found

    result: list[charts.Chart | None] = []
    steps = max(run.step for run in runs)

    def add(title: str, event: str, value: Any, noisy: bool) -> None:
        result.append(charts.chart(title, curves(event, value), steps=steps, noisy=noisy))

    for event, key, title, noisy in _CHARTS:
        add(title, event, lambda r, k=key: r.get(k), noisy)
        if key == "loss":
            records = [record for run in runs for record in run.events("train")]
            for name in dict.fromkeys(name for r in records for name in r.get("losses", ())):
                title = f"training loss: {name}"
                add(title, event, lambda r, n=name: r.get("losses", {}).get(n), True)
    return [chart for chart in result if chart is not None]


def _classes(shown: Sequence[Shown | None]) -> list[dict[str, Any]]:
    """A row for each class: the IoU of each run, the largest of the first run on top."""
    found = [one for one in shown if one]
    names = list(dict.fromkeys(name for one in found for name in one.iou))

    def order(name: str) -> float:
        return next((-v for one in found if (v := one.iou.get(name)) is not None), 1.0)

    rows = []
    for name in sorted(names, key=order):
        total = next((sum(one.pixels.values()) for one in found if one.pixels), 0)
        pixels = next((one.pixels.get(name, 0) for one in found if one.pixels), 0)
        bars = [(run, one.iou.get(name)) for run, one in enumerate(shown) if one]
        rows.append(
            {
                "name": name,
                "share": f"{pixels / total:.2%}" if total else "",
                "bars": [(run, 100 * v if v is not None else None) for run, v in bars],
            }
        )
    return rows


def _matrix(shown: Shown | None) -> dict[str, Any] | None:
    """The drawn confusion matrix of a run, and its largest errors."""
    from markupsafe import Markup

    if shown is None or not shown.confusion:
        return None
    counts, names = np.asarray(shown.confusion, np.int64), list(shown.iou)
    kept, labels = confusion.largest(counts, names)
    return {
        "svg": Markup(confusion.matrix(kept, labels)),
        "rows": confusion.confusions(counts, names),
        "merged": len(labels) < len(names),
    }


def _gallery(shown: Shown | None) -> dict[str, Any] | None:
    """The pictures of a run, and the legend of their classes."""
    if shown is None or shown.folder is None:
        return None
    groups = []
    for kind in ("best", "worst"):
        pictures = []
        for picture in shown.pictures.get(kind, ()):
            try:
                files = [_data_url(shown.folder / str(name)) for name in picture["files"]]
            except (OSError, KeyError, TypeError):
                continue
            pictures.append({"id": picture["id"], "miou": picture["miou"], "files": files})
        if pictures:
            groups.append((kind, pictures))
    if not groups:
        return None
    colors = [*zip(shown.iou, shown.palette, strict=False), ("ignored", IGNORED_COLOR)]
    legend = [(name, "#" + "".join(f"{level:02x}" for level in color)) for name, color in colors]
    return {"groups": groups, "legend": legend}


def _data_url(path: Path) -> str:
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _evaluation(name: str, table: Any) -> list[str]:
    def score(key: str) -> str:
        return "-" if table.get(key) is None else f"{table[key]:.4f}"

    step = "-" if table.get("step") is None else str(table["step"])
    images = str(table.get("images", "-"))
    weights = str(table.get("weights", "-"))
    return [name, step, weights, images, *map(score, ("miou", "pixel_accuracy", "mean_dice"))]


def _times(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The time of each run by kind, with its share in percent."""
    rows = []
    for run in runs:
        spent = times.spent(run)
        shares = times.shares(spent)
        parts = [
            (kind, index, times.duration(seconds), shares[kind])
            for index, (kind, seconds) in enumerate(spent.items())
            if kind in shares
        ]
        whole = times.duration(sum(spent.values()))
        rows.append({"name": run.name, "whole": whole, "parts": parts})
    return rows


def _versions(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """Name, the value of each run, and whether they differ."""
    tables = []
    for run in runs:
        table = {
            "device": _devices(run),
            "platform": run.versions.get("platform"),
            "python": run.versions.get("python"),
            **run.versions.get("packages", {}),
        }
        for kind, plugin in (run.versions.get("plugins") or {}).items():
            if isinstance(plugin, dict):
                found = (plugin.get("distribution"), plugin.get("version"))
                table[f"{kind} from"] = " ".join(str(part) for part in found if part)
        tables.append({name: "-" if value is None else str(value) for name, value in table.items()})
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name, [table.get(name, "-") for table in tables]) for name in names]
    return [(name, values, len(set(values)) > 1) for name, values in rows]


def _command(run: Run) -> tuple[str, str]:
    """The command that makes a run again, or a sentence instead."""
    if not run.config:
        return "", "The run recorded no settings that can be read."
    try:
        return settings.command(run.config, f"runs/{run.path.resolve().name}-again"), ""
    except ConfigError as error:
        return "", f"No command can be given: {error}. The settings are below."
