"""The report as one self-contained HTML page: verdict, plots of errors, predictions, numbers."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.errors import ConfigError
from fcn_jax.eval.draw import colorize, generic_classes
from fcn_jax.runtime import destination, json_text
from fcn_jax.runtime.atomic import write_text
from fcn_jax.verify import plot
from fcn_jax.verify.criterion import Comparison, Section
from fcn_jax.verify.predictions import Pictures
from fcn_jax.verify.report import Report
from fcn_jax.verify.report_table import GENERATOR
from fcn_jax.verify.series import Series, grouped

SUFFIXES = (".html", ".json")

_PAGE_MARK = f'<meta name=generator content="{GENERATOR}">'

_TEMPLATE = Path(__file__).with_name("report.html.jinja")

_SENSITIVITIES = 40
"""Number of tensors whose sensitivity the page shows."""

_MAGMA = np.array(
    [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]],
    np.float32,
)
"""Colors of matplotlib's map "magma" at equal distances."""


def write(report: Report, path: str | Path) -> None:
    """Write a report atomically.

    Args:
        report: of `verify_model` or `compare`.
        path: ends in `.html` (needs jinja2) or `.json`.

    Raises:
        ConfigError: another suffix, or jinja2 is not installed.
        WriteError: the file cannot be written, or an existing file is not such a report.
    """
    path = Path(path)
    check_path(path)
    if path.suffix == ".html":
        text = page(report)
    else:
        text = json_text.dumps(report.to_dict(), indent=2) + "\n"
    write_text(path, text)


def check_path(path: Path) -> None:
    """Check that `write` can write a file, before the report is computed.

    Raises:
        ConfigError: another suffix, or jinja2 is not installed.
        WriteError: the path is a folder or a file that is not such a report, or its folder is not
            writable.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a report ends in {' or '.join(SUFFIXES)}")
    destination.check_file(path, _is_report, "a report of fcn-jax verify")
    if path.suffix == ".html":
        try:
            import jinja2  # noqa: F401
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
    """The whole page. Raises `ImportError` without jinja2."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    table = report.to_dict()
    head, *rows = report.summary()
    doubt = table["verdict"] == "inconclusive" or (report.equal and report.not_proven)
    settings = {
        key: table[key] for key in ("settings", "weights", "environment", "criterion", "sources")
    }
    return environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        mark=Markup(_PAGE_MARK),
        report=report,
        verdict=table["verdict"],
        status="doubt" if doubt else "equal" if report.equal else "unequal",
        head=head,
        summary=[(row, section.equal) for row, section in zip(rows, report.sections, strict=True)],
        sections=[_section(section, report) for section in report.sections],
        sensitivity=_sensitivity(table["sensitivity"]),
        measured=len(table["sensitivity"]),
        mutation=_mutation(table["mutation"]),
        pictures=list(_pictures(report.pictures)) if report.pictures else [],
        weights=_weights(report),
        settings=json_text.dumps(settings, indent=2),
    )


def _section(section: Section, report: Report) -> dict[str, Any]:
    """What the page shows of a section: a plot, a row for each series, a row for each tensor."""
    from markupsafe import Markup

    series = grouped(section.comparisons)
    series.sort(key=lambda one: one.equal)  # stable, so the first failing layer is on top
    errors: Mapping[str, float] = {}
    if report.third_opinion is not None:
        errors = report.third_opinion.errors.get(section.title, {})
    return {
        "title": section.title,
        "equal": section.equal,
        "count": len(section.comparisons),
        "plot": Markup(plot.errors(section)) if len(section.comparisons) > 1 else "",
        "series": [(_series_row(one), one.equal) for one in series],
        "rows": [(_row(c, errors), c.equal) for c in section.comparisons],
        "torchax": bool(errors),
        "grouped": len(series) < len(section.comparisons),
    }


def _series_row(series: Series) -> tuple[str, ...]:
    worst = series.worst
    shapes = {comparison.shape for comparison in series.comparisons}
    shape = "x".join(map(str, worst.shape)) if len(shapes) == 1 else "several"
    count = str(len(series.comparisons))
    error = worst.fault or f"{worst.error:.2e}"
    share = "" if worst.fault else f"{worst.excess:.2f}"
    numbers = (f"{worst.reference_error:.2e}", f"{worst.limit:.2e}")
    return (series.name, count, shape, error, *numbers, share)


def _row(c: Comparison, torchax: Mapping[str, float]) -> tuple[str, ...]:
    numbers = (f"{x:.2e}" for x in (c.reference_error, c.limit, c.largest))
    shape = "x".join(map(str, c.shape))
    third = (f"{torchax[c.name]:.2e}" if c.name in torchax else "",) if torchax else ()
    return (c.name, shape, c.fault or f"{c.error:.2e}", *numbers, *third)


def _weights(report: Report) -> list[tuple[tuple[str, str], bool]]:
    record = report.coverage
    if record is None:
        return []
    rows = [(name, path) for path, name in record.loaded.items()]
    rows += [(name, f"dropped: {reason}") for name, reason in record.dropped.items()]
    return [(row, True) for row in rows]


def _sensitivity(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the tensors on which the outputs depend least, with the length of a bar in percent.

    The length is logarithmic. Tensors that are not proven come first.
    """
    known = [value for entry in entries if math.isfinite(value := entry["value"]) and value > 0]
    low, high = math.log10(min(known, default=1.0)) - 0.5, math.log10(max(known, default=1.0))

    def bar(value: float) -> float:
        power = math.log10(value) if 0 < value < math.inf else math.copysign(math.inf, value - 1)
        return 100 * (min(max(power, low), high) - low) / (high - low)

    rows = sorted(entries, key=lambda entry: (not entry["reason"], entry["value"]))
    return [{**entry, "bar": bar(entry["value"])} for entry in rows[:_SENSITIVITIES]]


def _mutation(table: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A summary of the planted faults and a row for each; those that survive come first."""
    if not table:
        return None
    planted = [fault for fault in table["outcomes"] if not fault["equivalent"]]
    caught = [fault for fault in planted if fault["caught"]]
    right = sum(fault["right"] for fault in caught)
    rows = [
        {
            "kind": fault["kind"],
            "fault": fault["fault"].removeprefix(f"{fault['kind']}: "),
            "caught": _caught(fault["caught"]) or fault["equivalent"] or "nothing",
            # Reports of earlier versions have the second name.
            "first_failing": fault.get("first_failing", fault.get("blamed", "")),
            "passed": bool(fault["caught"] or fault["equivalent"]),
        }
        for fault in sorted(table["outcomes"], key=lambda f: bool(f["caught"] or f["equivalent"]))
    ]
    summary = f"{len(caught)} of {len(planted)} planted faults caught, {right} with the right layer"
    return {"summary": summary, "rows": rows}


def _caught(found: str | Sequence[str]) -> str:
    """The check that catches a fault. Reports of earlier versions list all of them."""
    return found if isinstance(found, str) else ", ".join(found)


def _pictures(pictures: Pictures) -> Iterator[tuple[str, str]]:
    """Captions and data URLs."""
    classes = generic_classes(pictures.num_classes)
    agree = float((pictures.torch == pictures.jax).mean())
    largest = float(pictures.difference.max(initial=0.0))
    share = pictures.difference / (largest or 1.0) * (len(_MAGMA) - 1)
    levels = np.arange(len(_MAGMA))
    heat = np.stack([np.interp(share, levels, channel) for channel in _MAGMA.T], axis=-1)
    yield "image", _png(pictures.image)
    yield (
        f"largest difference of a pixel's logits, from 0 (black) to {largest:.1e} (yellow) of the "
        "largest logit",
        _png(heat.astype(np.uint8)),
    )
    yield "classes by PyTorch float64", _png(colorize(pictures.torch, classes))
    same = f"classes by JAX: the same on {agree:.4%} of the pixels"
    yield same, _png(colorize(pictures.jax, classes))


def _png(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
