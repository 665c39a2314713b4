"""Reports as text, JSON and HTML, from made-up comparisons."""

import json
import re

import numpy as np
import pytest

from fcn_jax.errors import ConfigError, WriteError
from fcn_jax.verify import Comparison, Report, Section, html
from fcn_jax.verify.report import Agreement, Pictures

pytest.importorskip("torch")


def made(error=1e-7, reference_error=2e-7, title="layers, isolated", **settings):
    """A report on two tensors, the second one with these errors."""
    comparisons = (
        Comparison("conv1", (4, 3, 1, 1), 1e-7, 2e-7, 1e-6, 3e-7),
        Comparison("<bn>", (4,), error, reference_error, 1e-6, 2 * error),
    )
    sections = [Section(title, 2.0, comparisons), Section("gradients", 3.0, comparisons)]
    return Report("net", "float32", sections=sections, **settings)


def test_text_starts_with_the_verdict_and_has_a_row_for_each_section():
    text = str(made(agreement=[Agreement((8, 9), 0.75, 1.0, 0.5)], skipped=("head",)))
    lines = text.splitlines()
    assert lines[0] == "EQUAL: net in float32 is the same function in JAX and PyTorch"
    assert lines[2].split() == ["tensors", "worst", "JAX", "PyTorch", "factor", "allowed"]
    assert lines[3].split() == [
        *("layers,", "isolated", "2", "conv1", "1.0e-07", "2.0e-07", "0.20", "2"),
    ]
    assert "8x9: argmax agrees on 75.0000% of the pixels (PyTorch float32 on 100.0000%)" in text
    assert "skipped layers, which one side does not call with a single tensor: head" in text


def test_failures_are_listed():
    report = made(error=1e-3)
    assert not report.equal
    assert report.failure == "<bn>: error 1.0e-03, PyTorch's own 2.0e-07, allowed 1.0e-06"
    text = str(report)
    assert text.startswith(f"NOT EQUAL: net in float32: {report.failure}")
    assert "2 tensors over their limit:" in text
    assert text.count("FAILED") == 2


def test_few_inconclusive_tensors_are_counted():
    right = [Comparison(f"t{i}", (4,), 1e-7, 2e-7, 1e-6, 3e-7) for i in range(49)]
    noisy = Comparison("noisy", (4,), 0.9, 0.5, 0.9, 0.9)
    report = Report("net", "float32", sections=[Section("gradients", 3.0, (*right, noisy))])
    assert report.equal
    assert "(1 tensors are inconclusive: too noisy in PyTorch)" in report.verdict
    more = Section("gradients", 3.0, (*right[1:], noisy))
    assert not Report("net", "float32", sections=[more]).equal, "more than 2 %"


def test_many_inconclusive_tensors_are_not_equal():
    report = made(error=0.9, reference_error=0.5)
    assert not report.equal
    assert report.inconclusive == 2
    assert report.verdict.startswith(
        "INCONCLUSIVE: net in float32: layers, isolated: PyTorch's own error is 0.5 or more for 1 "
        "of 2 tensors (at most 2% may be so); use a larger batch or size; gradients: "
    )
    assert report.to_dict()["verdict"] == "inconclusive"
    assert "gradients: 1 of 2 inconclusive, since PyTorch's own error is 0.5 or more" in str(report)
    assert [section["inconclusive"] for section in report.to_dict()["sections"]] == [1, 1]


def test_writes_json(tmp_path):
    report = made()
    html.write(report, tmp_path / "r.json")
    table = json.loads((tmp_path / "r.json").read_text())
    assert table["verdict"] == "equal"
    assert [section["title"] for section in table["sections"]] == ["layers, isolated", "gradients"]
    assert table["sections"][0]["comparisons"][1]["reference_error"] == 2e-7
    assert {"python", "jax", "torch", "numpy"} <= table["environment"]["versions"].keys()


@pytest.mark.parametrize("equal", [True, False])
def test_writes_a_self_contained_page(tmp_path, equal):
    image = np.zeros((4, 6, 3), np.uint8)
    classes = np.arange(24).reshape(4, 6).astype(np.uint8) % 3
    pictures = Pictures(image, classes, classes, np.ones((4, 6), np.float32), 3)
    report = made(error=1e-7 if equal else 1e-3, pictures=pictures)
    html.write(report, tmp_path / "sub" / "r.html")
    page = (tmp_path / "sub" / "r.html").read_text()
    assert page.count(f"<h1 class={'equal' if equal else 'unequal'}>{report.verdict[:5]}") == 1
    assert "http" not in page.replace("http://www.w3.org", ""), "nothing is loaded from elsewhere"
    assert page.count("data:image/svg+xml") == 2
    assert page.count("data:image/png") == 4
    assert "<bn>" not in page, "names are escaped"
    assert page.count("<details>") == (2 if equal else 0)
    assert page.count("<details open>") == (0 if equal else 2)
    assert page.count("<tr class=failed>") == (0 if equal else 4)
    rows = re.findall(r"<tr class=passed><td>conv1<td>4x3x1x1<td>1.00e-07<td>2.00e-07", page)
    assert len(rows) == 2


def test_rejects_other_suffixes(tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.html or \.json"):
        html.write(made(), tmp_path / "r.pdf")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_page_without_its_packages_names_the_extra(tmp_path, monkeypatch, package):
    import builtins

    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == package:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(
        ConfigError, match=rf"need {package}; pip install 'fcn-jax\[torch\]', or write \.json"
    ):
        html.check_path(tmp_path / "r.html")
    html.check_path(tmp_path / "r.json")


def test_replaces_reports_only(tmp_path):
    for name in ("r.json", "r.html"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(
            WriteError, match=f"{name}: exists and is not a report of fcn-jax verify"
        ):
            html.write(made(), tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
        html.write(made(), tmp_path / name)
        html.check_path(tmp_path / name)
        html.write(made(), tmp_path / name)
        assert "fcn-jax verify" in (tmp_path / name).read_text()[:200]
