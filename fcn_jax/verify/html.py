"""The report as one self-contained HTML page: verdict, plotted errors, predictions, numbers."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcn_jax.convert.report import LoadReport
from fcn_jax.errors import ConfigError
from fcn_jax.eval.draw import colorize, generic_classes
from fcn_jax.runtime import destination, json_text
from fcn_jax.runtime.atomic import write_text
from fcn_jax.verify.compare import Comparison, Section
from fcn_jax.verify.report import Pictures, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".html", ".json")

GENERATOR = "fcn-jax verify"
"""What a report names as its generator. A file that does not is never replaced."""

_PAGE_MARK = f'<meta name=generator content="{GENERATOR}">'

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.3em; padding: .6em .8em; border-radius: 6px; color: #fff; overflow-wrap: anywhere; }
h1.equal { background: #1a7f37; } h1.unequal { background: #b42318; }
h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: .15em .7em; text-align: right; border-bottom: 1px solid #e5e5e5; }
td:first-child, th:first-child { text-align: left; font-family: ui-monospace, monospace; }
tr.failed { background: #fde8e6; } summary { cursor: pointer; margin: .6em 0; }
.plot img { width: 100%; } .pictures { display: grid; grid-template-columns: 1fr 1fr; gap: 1em; }
.pictures img { width: 100%; image-rendering: pixelated; } figure { margin: 0; } figcaption { font-size: 13px; color: #555; }
"""


def write(report: Report, path: str | Path) -> None:
    """Write a report, whole or not at all.

    Args:
        report: of `verify_model` or `compare_modules`.
        path: ends in `.html` (needs matplotlib) or `.json`.

    Raises:
        ConfigError: another suffix, or matplotlib is not installed.
        WriteError: the file cannot be written, or an existing file is not such a report.
    """
    path = Path(path)
    check_path(path)
    table = {"generator": GENERATOR, **report.to_dict()}
    write_text(
        path, page(report) if path.suffix == ".html" else json_text.dumps(table, indent=2) + "\n"
    )


def check_path(path: Path) -> None:
    """Refuse what `write` could not write, before the work is done.

    Raises:
        ConfigError: the name ends otherwise, or what a page needs is not installed.
        WriteError: there is a folder, or a file that is not such a report, or the folder around it
            cannot be written to.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a report ends in {' or '.join(SUFFIXES)}")
    destination.check_file(path, _is_report, "a report of fcn-jax verify")
    if path.suffix == ".html":
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"{path}: the page's plots need matplotlib; pip install 'fcn-jax[torch]', or write .json"
            ) from error


def _is_report(path: Path) -> bool:
    """Whether an existing file is a report that `write` wrote: it names its generator at its beginning."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            beginning = file.read(512)
    except OSError:
        return False
    return any(mark.encode() in beginning for mark in (_PAGE_MARK, f'"generator": "{GENERATOR}"'))


def page(report: Report) -> str:
    """The whole page. Raises `ImportError` without matplotlib."""
    state = "equal" if report.equal else "unequal"
    parts = [
        f"<h1 class={state}>{html.escape(report.verdict)}</h1>",
        "<p>Errors are relative L2 distances to PyTorch float64. The yardstick is the error of PyTorch itself, the worst of several "
        "correct runs (oneDNN on and off, contiguous and channels_last), but at least a few roundings (2<sup>-21</sup> in float32, "
        "2<sup>-9</sup> in bfloat16). <em>Factor</em> is JAX's error in yardsticks at the worst tensor, <em>allowed</em> the "
        "largest that passes.</p>",
        _table(
            ("", "tensors", "worst tensor", "JAX", "PyTorch", "factor", "allowed"),
            (_summary(section) for section in report.sections),
        ),
        *(f"<p>{html.escape(line)}</p>" for line in report.remarks()),
    ]
    layers = [section for section in report.sections if section.title.startswith("layers")]
    if layers:
        parts += ["<h2>Error by layer</h2>", _plot(layers)]
    gradients = [section for section in report.sections if section.title == "gradients"]
    if gradients:
        parts += ["<h2>Error of the gradients</h2>", _plot(gradients)]
    if report.pictures:
        parts += ["<h2>Predictions</h2>", _pictures(report.pictures)]
    parts += ["<h2>Every tensor</h2>", *(_details(section) for section in report.sections)]
    if report.coverage:
        parts.append(_coverage(report.coverage))
    settings = json.dumps({"weights": dict(report.weights), **report.environment}, indent=2)
    parts += ["<h2>Made with</h2>", f"<pre>{html.escape(settings)}</pre>"]
    title = f"{report.subject}: {'equal' if report.equal else 'not equal'}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>{_PAGE_MARK}<title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def _summary(section: Section) -> tuple[tuple[str, ...], str]:
    worst = section.worst
    state = "" if section.equal else "failed"
    if worst is None:
        return (section.title, "0", "", "", "", "", f"{section.factor:g}"), state
    numbers = (
        f"{worst.error:.1e}",
        f"{worst.torch_error:.1e}",
        f"{section.worst_factor:.2f}",
        f"{section.factor:g}",
    )
    return (section.title, str(len(section.comparisons)), worst.name, *numbers), state


def _details(section: Section) -> str:
    rows = (
        (
            (
                c.name,
                _shape(c),
                c.fault or f"{c.error:.2e}",
                *(f"{x:.2e}" for x in (c.torch_error, c.limit, c.largest)),
            ),
            "" if c.equal else "failed",
        )
        for c in section.comparisons
    )
    head = ("tensor", "shape", "JAX", "PyTorch", "allowed", "largest difference")
    is_open = "" if section.equal else " open"
    return f"<details{is_open}><summary>{html.escape(section.title)}: {len(section.comparisons)}</summary>{_table(head, rows)}</details>"


def _shape(comparison: Comparison) -> str:
    return "x".join(map(str, comparison.shape))


def _coverage(record: LoadReport) -> str:
    rows = [(name, path) for path, name in record.loaded.items()]
    rows += [(name, f"dropped: {reason}") for name, reason in record.dropped.items()]
    table = _table(("PyTorch", "here"), ((row, "") for row in rows))
    return f"<details><summary>weights: {html.escape(str(record))}</summary>{table}</details>"


def _table(head: Iterable[str], rows: Iterable[tuple[Iterable[str], str]]) -> str:
    """Rows are cells and a CSS class."""
    cells = "".join(f"<th>{html.escape(cell)}" for cell in head)
    lines = [
        f"<tr class={state or 'passed'}>" + "".join(f"<td>{html.escape(cell)}" for cell in row)
        for row, state in rows
    ]
    return f"<table><tr>{cells}\n" + "\n".join(lines) + "</table>"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # not pyplot, whose state is the process's

    return Figure(figsize=(width, height), layout="constrained")


def _plot(sections: list[Section]) -> str:
    """JAX's and PyTorch's error of every tensor, one panel a section, in the order of the computation."""
    figure = _figure(11, 3.1 * len(sections))
    for axes, section in zip(
        figure.subplots(len(sections), squeeze=False)[:, 0], sections, strict=True
    ):
        x = np.arange(len(section.comparisons))
        comparisons = section.comparisons
        axes.plot(
            x,
            _heights(c.limit for c in comparisons),
            color="#999",
            lw=1,
            ls="--",
            label=f"allowed ({section.factor:g}x)",
        )
        axes.plot(
            x,
            _heights(c.torch_error for c in comparisons),
            "o",
            ms=4,
            color="#e8590c",
            label="PyTorch, worst run",
        )
        axes.plot(
            x, _heights(c.error for c in comparisons), "x", ms=5, color="#1864ab", label="JAX"
        )
        for i in (i for i, c in enumerate(comparisons) if not c.equal):
            axes.axvspan(i - 0.5, i + 0.5, color="#b42318", alpha=0.15, lw=0)
        axes.set(yscale="log", ylabel="relative L2 error", xlim=(-1, len(x)))
        shown = x if len(x) <= 70 else x[:: math.ceil(len(x) / 70)]
        axes.set_xticks(
            shown,
            [comparisons[i].name.removeprefix("backbone.") for i in shown],
            rotation=90,
            fontsize=6,
        )
        axes.set_title(section.title, loc="left")
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    return f'<div class=plot><img alt="errors" src="{_image(figure, "svg")}"></div>'


def _heights(values: Iterable[float]) -> np.ndarray:
    """What can be drawn on a logarithmic axis: an error of exactly 0 stands at the foot, one without number at the top."""
    return np.array([min(max(value, 1e-9), 1e3) for value in values])


def _pictures(pictures: Pictures) -> str:
    classes = generic_classes(pictures.num_classes)
    agree = float((pictures.torch == pictures.jax).mean())
    figure = _figure(6, 6 * pictures.image.shape[0] / pictures.image.shape[1])
    axes = figure.subplots()
    drawn = axes.imshow(pictures.difference, cmap="magma")
    axes.set_axis_off()
    figure.colorbar(drawn, ax=axes, fraction=0.04, format="%.1e")
    shown = (
        ("the image", _png(pictures.image)),
        (
            "largest difference of a pixel's logits, as a share of the largest logit",
            _image(figure, "png"),
        ),
        ("classes by PyTorch float64", _png(colorize(pictures.torch, classes))),
        (
            f"classes by JAX: the same on {agree:.4%} of the pixels",
            _png(colorize(pictures.jax, classes)),
        ),
    )
    figures = (
        f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'
        for caption, source in shown
    )
    return f"<div class=pictures>{''.join(figures)}</div>"


def _image(figure: Figure, kind: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return _data_url(buffer.getvalue(), "image/svg+xml" if kind == "svg" else "image/png")


def _png(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return _data_url(buffer.getvalue(), "image/png")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
