"""The report as one self-contained HTML page: verdict, plots of errors, predictions, numbers."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcn_jax.errors import ConfigError
from fcn_jax.eval.draw import colorize, generic_classes
from fcn_jax.runtime import destination, json_text
from fcn_jax.runtime.atomic import write_text
from fcn_jax.verify.compare import Comparison, Section
from fcn_jax.verify.report import Pictures, Report, summary_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".html", ".json")

GENERATOR = "fcn-jax verify"
"""The generator that a report names. Files of another generator are never replaced."""

_PAGE_MARK = f'<meta name=generator content="{GENERATOR}">'

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write(report: Report, path: str | Path) -> None:
    """Write a report atomically.

    Args:
        report: of `verify_model` or `compare`.
        path: ends in `.html` (needs jinja2 and matplotlib) or `.json`.

    Raises:
        ConfigError: another suffix, or a package is not installed.
        WriteError: the file cannot be written, or an existing file is not such a report.
    """
    path = Path(path)
    check_path(path)
    if path.suffix == ".html":
        text = page(report)
    else:
        text = json_text.dumps({"generator": GENERATOR, **report.to_dict()}, indent=2) + "\n"
    write_text(path, text)


def check_path(path: Path) -> None:
    """Check that `write` can write a file, before the report is computed.

    Raises:
        ConfigError: another suffix, or a package is not installed.
        WriteError: the path is a folder or a file that is not such a report, or its folder is not
            writable.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a report ends in {' or '.join(SUFFIXES)}")
    destination.check_file(path, _is_report, "a report of fcn-jax verify")
    if path.suffix == ".html":
        try:
            import jinja2  # noqa: F401
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"{path}: HTML reports need {error.name}; pip install 'fcn-jax[torch]', or write "
                ".json"
            ) from error


def _is_report(path: Path) -> bool:
    """Whether an existing file is a report, by the generator at its beginning."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            beginning = file.read(512)
    except OSError:
        return False
    return any(mark.encode() in beginning for mark in (_PAGE_MARK, f'"generator": "{GENERATOR}"'))


def page(report: Report) -> str:
    """The whole page. Raises `ImportError` without jinja2 or matplotlib."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    layers = [section for section in report.sections if section.title.startswith("layers")]
    gradients = [section for section in report.sections if section.title == "gradients"]
    plots = {"Error by layer": layers, "Error of the gradients": gradients}
    settings = {"weights": dict(report.weights), **report.environment}
    return environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        mark=Markup(_PAGE_MARK),
        report=report,
        summary=[(summary_row(section), section.equal) for section in report.sections],
        plots=[(title, _plot(sections)) for title, sections in plots.items() if sections],
        pictures=list(_pictures(report.pictures)) if report.pictures else [],
        tensors=[(section, map(_row, section.comparisons)) for section in report.sections],
        weights=_weights(report),
        settings=json.dumps(settings, indent=2),
    )


def _row(c: Comparison) -> tuple[tuple[str, ...], bool]:
    numbers = (f"{x:.2e}" for x in (c.reference_error, c.limit, c.largest))
    shape = "x".join(map(str, c.shape))
    return (c.name, shape, c.fault or f"{c.error:.2e}", *numbers), c.equal


def _weights(report: Report) -> list[tuple[tuple[str, str], bool]]:
    record = report.coverage
    if record is None:
        return []
    rows = [(name, path) for path, name in record.loaded.items()]
    rows += [(name, f"dropped: {reason}") for name, reason in record.dropped.items()]
    return [(row, True) for row in rows]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # pyplot would have global state

    return Figure(figsize=(width, height), layout="constrained")


def _plot(sections: Sequence[Section]) -> str:
    """Errors of every tensor, in the order of the computation, one panel for each section."""
    figure = _figure(11, 3.1 * len(sections))
    for axes, section in zip(
        figure.subplots(len(sections), squeeze=False)[:, 0], sections, strict=True
    ):
        comparisons = section.comparisons
        x = np.arange(len(comparisons))
        for field, style, color, label in (
            ("limit", "--", "#999", f"allowed ({section.factor:g}x)"),
            ("reference_error", "o", "#e8590c", "PyTorch, worst run"),
            ("error", "x", "#1864ab", "JAX"),
        ):
            # On a logarithmic axis, an error of 0 is drawn at the bottom, a fault at the top.
            heights = np.clip([getattr(c, field) for c in comparisons], 1e-9, 1e3)
            axes.plot(x, heights, style, color=color, label=label, lw=1, ms=4)
        for i, comparison in enumerate(comparisons):
            if not comparison.equal:
                axes.axvspan(i - 0.5, i + 0.5, color="#b42318", alpha=0.15, lw=0)
        axes.set(yscale="log", ylabel="relative L2 error", xlim=(-1, len(x)))
        shown = x if len(x) <= 70 else x[:: math.ceil(len(x) / 70)]
        names = [comparisons[i].name.removeprefix("backbone.") for i in shown]
        axes.set_xticks(shown, names, rotation=90, fontsize=6)
        axes.set_title(section.title, loc="left")
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    return _image(figure, "svg")


def _pictures(pictures: Pictures) -> Iterator[tuple[str, str]]:
    """Captions and data URLs."""
    classes = generic_classes(pictures.num_classes)
    agree = float((pictures.torch == pictures.jax).mean())
    figure = _figure(6, 6 * pictures.image.shape[0] / pictures.image.shape[1])
    axes = figure.subplots()
    drawn = axes.imshow(pictures.difference, cmap="magma")
    axes.set_axis_off()
    figure.colorbar(drawn, ax=axes, fraction=0.04, format="%.1e")
    yield "image", _png(pictures.image)
    difference = "largest difference of a pixel's logits, as a share of the largest logit"
    yield difference, _image(figure, "png")
    yield "classes by PyTorch float64", _png(colorize(pictures.torch, classes))
    same = f"classes by JAX: the same on {agree:.4%} of the pixels"
    yield same, _png(colorize(pictures.jax, classes))


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
