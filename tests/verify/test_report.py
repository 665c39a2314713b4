"""Reports as text, JSON and HTML, from made-up comparisons."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.convert.report import LoadReport
from fcn_jax.errors import ConfigError, WriteError
from fcn_jax.runtime import json_text
from fcn_jax.verify import Comparison, Report, Section, html
from fcn_jax.verify.predictions import Agreement, Pictures
from fcn_jax.verify.sensitivity import Sensitivity
from fcn_jax.verify.third_opinion import ThirdOpinion

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
    reason = "no one PyTorch module holds these tensors: fc.weight"
    skipped = {"head": reason, "neck": reason, "tail": "JAX does not call it with a single array"}
    text = str(made(agreement=[Agreement((8, 9), 0.75, 1.0, 0.5)], skipped=skipped))
    lines = text.splitlines()
    assert lines[0] == "EQUAL: net in float32 is the same function in JAX and PyTorch"
    assert lines[1] == f"not compared one by one: head, neck ({reason})", "next to the verdict"
    assert lines[2].startswith("not compared one by one: tail (JAX does not")
    assert lines[4].split() == ["tensors", "worst", "JAX", "PyTorch", "factor", "allowed"]
    assert lines[5].split() == [
        *("layers,", "isolated", "2", "conv1", "1.0e-07", "2.0e-07", "0.20", "2"),
    ]
    assert "8x9: argmax agrees on 75.0000% of the pixels (PyTorch float32 on 100.0000%)" in text


def test_failures_are_listed():
    report = made(error=1e-3)
    assert not report.equal
    assert report.failure == "<bn>: error 1.0e-03, PyTorch's own 2.0e-07, allowed 1.0e-06"
    text = str(report)
    assert text.startswith(f"NOT EQUAL: net in float32: {report.failure}")
    assert "2 tensors over their limit:" in text
    assert text.count("FAILED") == 2


def block(number, error):
    return Comparison(f"layer{number}.conv", (4,), error, 2e-7, 1e-6, 1e-6)


def test_failures_of_repeated_blocks_share_a_line():
    right = Comparison("layer9.conv", (4,), 1e-7, 2e-7, 1e-6, 1e-6)
    stem = Comparison("stem", (4,), 1e-3, 2e-7, 1e-6, 1e-6)
    blocks = [block(number, 1e-4 * number) for number in range(1, 21)]
    section = Section("layers, isolated", 2.0, (right, stem, *blocks))
    others = [Comparison(name * 3, (4,), 1.0, 2e-7, 1e-6, 1.0) for name in "abcdefghijk"]
    text = str(Report("net", "float32", sections=[section, Section("s", 2.0, tuple(others))]))
    lines = text[text.index("32 tensors over their limit:") :].splitlines()
    assert lines[1:4] == [
        "  layers, isolated:",
        f"    {stem}",
        f"    layer*.conv: 20 tensors from layer1.conv on; worst {blocks[-1]}",
    ]
    assert lines[4:6] == ["  s:", f"    {others[0]}"]
    assert lines[13] == "    and 3 more"


def test_third_opinion_is_a_column():
    opinion = ThirdOpinion("1.0", {"gradients": {"conv1": 4e-7}})
    lines = str(made(third_opinion=opinion)).splitlines()
    assert [line.split()[-1] for line in lines[2:5]] == ["torchax", "2", "4.0e-07"]
    assert any(line.startswith("torchax 1.0 runs the PyTorch module by XLA") for line in lines)
    skipped = str(made(third_opinion=ThirdOpinion(skipped="it is not installed")))
    assert "torchax: skipped, because it is not installed" in skipped
    assert skipped.splitlines()[2].split()[-1] == "allowed"


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


numbers = st.floats(1e-12, 1e3)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
comparisons = st.builds(Comparison, st.text(), shapes, numbers, numbers, numbers, numbers)
faulty = st.builds(
    Comparison,
    *(st.text(), shapes, st.just(np.inf), numbers | st.just(np.nan), numbers | st.just(np.nan)),
    *(st.just(np.inf), st.sampled_from(["has NaN", "no such tensor"])),
)
sections = st.builds(
    Section,
    st.text(),
    st.floats(1, 10),
    st.lists(comparisons | faulty, min_size=1, max_size=3).map(tuple),
    attempts=st.integers(1, 4),
)
reports = st.builds(
    Report,
    st.text(),
    st.sampled_from(["float32", "bfloat16"]),
    environment=st.just({"versions": {"jax": "1"}}),
    sections=st.lists(sections, max_size=2),
    coverage=st.none() | st.builds(LoadReport, st.text(), loaded=st.just({"a.kernel": "a.weight"})),
    first_failing_layer=st.text(),
    agreement=st.lists(st.just(Agreement((8, 9), 0.5, 1.0, 0.5)), max_size=1),
    skipped=st.dictionaries(st.text(), st.text(), max_size=2),
    weights=st.just({"source": "x", "sha256": "ab"}),
    settings=st.just({"sizes": [[32, 32]], "key": ""}),
    sources=st.just({"a/b.py": "cd"}),
    sensitivity=st.lists(
        st.builds(Sensitivity, st.text(), numbers | st.just(np.inf), st.sampled_from(["", "low"])),
        max_size=3,
    ).map(tuple),
    third_opinion=st.none() | st.builds(ThirdOpinion, st.text(), skipped=st.text()),
)


@settings(max_examples=50, deadline=None)
@given(reports)
def test_json_is_read_back(report):
    text = json_text.dumps(report.to_dict())
    again = Report.from_dict(json.loads(text))
    assert json.loads(json_text.dumps(again.to_dict())) == json.loads(text)
    assert again.verdict.split(":")[0] == report.verdict.split(":")[0]


def replaced(table, path, value):
    """A copy of a JSON value with another value at a path of keys."""
    copied = json.loads(json.dumps(table))
    *above, last = path
    inner = copied
    for key in above:
        inner = inner[key]
    inner[last] = value
    return copied


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (["schema"], "other", "not a report of fcn-jax verify (it lacks the schema"),
        (["version"], 2, "a report of version 2; this fcn-jax reads version 1, so update it"),
        (["version"], "1", "a report of version 1;"),
        (["verdict"], "not equal", "its verdict 'not equal' does not follow from its numbers"),
        (["sections"], 3, "damaged report (sections: TypeError"),
        (["sections", 0], {}, "damaged report (sections: KeyError 'comparisons'"),
        (["sections", 0, "factor"], "x", "damaged report (sections.0.factor: "),
        (["sections", 0, "comparisons", 1, "error"], "x", "(sections.0.comparisons.1.error: "),
        (["weights"], 3, "damaged report (weights: "),
    ],
)
def test_rejects_what_is_not_a_report(path, value, complaint):
    table = replaced(json.loads(json_text.dumps(made().to_dict())), path, value)
    with pytest.raises(ConfigError, match=re.escape(complaint)) as caught:
        Report.from_dict(table, "r.json")
    assert str(caught.value).startswith("r.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["environment", "criterion", "sources", "verdict"])
def test_rejects_a_report_without_its_evidence(field):
    table = made().to_dict()
    del table[field]
    with pytest.raises(ConfigError, match=rf"damaged report \(it lacks {field}\)"):
        Report.from_dict(table)


@pytest.mark.parametrize("table", [None, [], {}, "x", {"verdict": "equal"}])
def test_rejects_other_json(table):
    with pytest.raises(ConfigError, match="the report: not a report of fcn-jax verify"):
        Report.from_dict(table)


def test_rejects_unreadable_files(tmp_path):
    (tmp_path / "cut.json").write_text(json_text.dumps(made().to_dict())[:-100])
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name, reason in (("cut", "line 1"), ("binary", "utf-8"), ("none", "No such file")):
        with pytest.raises(ConfigError, match=f"{name}.json: not a readable report.*{reason}"):
            Report.read(tmp_path / f"{name}.json")


@pytest.mark.parametrize("equal", [True, False])
def test_writes_a_self_contained_page(tmp_path, equal):
    image = np.zeros((4, 6, 3), np.uint8)
    classes = np.arange(24).reshape(4, 6).astype(np.uint8) % 3
    pictures = Pictures(image, classes, classes, np.ones((4, 6), np.float32), 3)
    report = made(error=1e-7 if equal else 1e-3, pictures=pictures)
    html.write(report, tmp_path / "sub" / "r.html")
    page = (tmp_path / "sub" / "r.html").read_text()
    assert page.count(f"<h1 class={'equal' if equal else 'unequal'}>{report.verdict[:5]}") == 1
    assert "http" not in page, "nothing is loaded from elsewhere"
    assert page.count("<svg ") == 2
    assert page.count("<rect class=failed") == (0 if equal else 2)
    assert page.count("data:image/png") == 4
    assert "<bn>" not in page, "names are escaped"
    assert page.count("<tr class=failed>") == (0 if equal else 4)
    rows = re.findall(r"<tr class=passed><td>conv1<td>1<td>4x3x1x1<td>1.00e-07<td>2.00e-07", page)
    assert len(rows) == 2
    if not equal:
        first = page.index("<tr class=failed><td>&lt;bn&gt;<td>1")
        assert first < page.index("<tr class=passed><td>conv1<td>1"), "failures are on top"
    assert "prefers-color-scheme: dark" in page


def test_page_groups_equal_layers():
    section = Section("layers, isolated", 2.0, tuple(block(number, 1e-7) for number in range(20)))
    page = html.page(Report("net", "float32", sections=[section]))
    assert "<td>layer*.conv<td>20<td>4<td>1.00e-07" in page
    assert "<summary>every tensor: 20</summary>" in page
    assert page.count("<circle class=jax") == 20 + 1, "one for each tensor, one in the legend"


def test_page_shows_sensitivity():
    entries = (Sensitivity("a", 1.0), Sensitivity("b", 0.0, "low"))
    page = html.page(made(sensitivity=entries))
    assert page.index("<tr class=failed><td>b<td>0.00e+00") < page.index(
        "<tr class=passed><td>a<td>1.00e+00"
    )
    assert 'style="width:0.0%"></div><td class=text>low' in page
    assert 'style="width:100.0%"' in page
    assert "<h1 class=doubt>EQUAL, except 1 tensors that are not proven: b: net" in page
    assert "Sensitivity" not in html.page(made())
    extreme = html.page(made(sensitivity=(Sensitivity("a", 0.0, "low"), Sensitivity("b", np.inf))))
    assert re.findall(r"width:([0-9.]+)%", extreme) == ["0.0", "100.0"]


def test_rejects_other_suffixes(tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.html or \.json"):
        html.write(made(), tmp_path / "r.pdf")


def test_page_lists_planted_faults_and_survivors_first():
    def fault(kind, place, caught=(), named="", right=False, equivalent=""):
        return {
            **{"kind": kind, "fault": f"{kind}: {place}", "caught": list(caught)},
            **{"first_failing": named, "right": right, "equivalent": equivalent},
        }

    outcomes = [
        fault("eps", "bn1: 1e-5 -> 1e-3", ["layers", "outputs"], "bn1", right=True),
        fault("swap", "fc", ["outputs"], "bn2"),
        fault("stride", "conv1: moved", equivalent="its input has one pixel"),
        fault("gelu", "block1: tanh"),
    ]
    page = html.page(made(mutation={"outcomes": outcomes}))
    assert "<p>2 of 3 planted faults caught, 1 with the right layer</p>" in page
    rows = re.findall(r"<tr class=(\w+)><td>(\w+)<td class=text>(.*?)<td class=text>(.*?)<", page)
    assert rows[:2] == [
        ("failed", "gelu", "block1: tanh", "nothing"),
        ("passed", "eps", "bn1: 1e-5 -&gt; 1e-3", "layers, outputs"),
    ]
    assert ("passed", "stride", "conv1: moved", "its input has one pixel") in rows
    assert "Planted faults" not in html.page(made())


def test_mutation_score_of_a_report_that_was_read_is_one_line():
    mutation = {"planted": 4, "caught": 0.75, "right_layer": 1.0, "outcomes": []}
    report = Report.from_dict(made(mutation=mutation).to_dict())
    line = "mutation score: 75.0% of 4 planted faults caught, the right layer named in 100.0%"
    assert line in str(report)


def test_page_without_jinja2_names_the_extra(tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "jinja2":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(
        ConfigError, match=r"need jinja2; pip install 'fcn-jax\[torch\]', or write \.json"
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
