"""The page about runs, from made-up run directories."""

import base64
import builtins
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fcn_jax import cli, report
from fcn_jax.errors import ConfigError, WriteError
from tests.report.conftest import RECORDS, START, evaluated, train

OPTIONAL = {"p", "td", "th", "tr", "dt", "dd", "html", "img", "input", "meta", "li"}
VOID = {"line", "rect", "circle", "path"}


class Checked(HTMLParser):
    """Checks that elements are closed in order, and collects text outside of scripts."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in OPTIONAL | VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in OPTIONAL | VOID:
            assert self.open, tag
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.text.append(data)


def read(path):
    """The page's source, and its text with single spaces."""
    source = path.read_text("utf-8")
    checked = Checked()
    checked.feed(source)
    assert checked.open == []
    assert "http:" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in source, "nothing is loaded from elsewhere"
    assert "<b>" not in "".join(re.findall("car .{0,8}", source)), "names are escaped"
    return source, " ".join(" ".join(checked.text).split())


def test_page_of_a_finished_run(make_run):
    folder = make_run(records=(*RECORDS[:-1], RECORDS[-1]), optim={"lr": 0.3})
    counts = evaluated(folder)
    path = report.write([folder])
    assert path == folder / "report.html"
    source, text = read(path)
    assert "finished after step 8, epoch 2 of 2" in text
    assert "0.7500 best val mIoU 0.9000 pixel accuracy at step 8" in text
    charts = re.findall(r"<figcaption>([^<]+)<span class=last>", source)
    assert charts == [
        "training loss",
        "validation mIoU",
        "validation pixel accuracy",
        "learning rate",
        "norm of the gradient",
        "training images per second",
    ]
    data = json.loads(re.search(r"id=data>(.*?)</script>", source, re.DOTALL)[1])
    assert data[0]["curves"] == [
        {"run": 0, "name": "run", "steps": [2, 4, 8], "values": [1.0, 0.5, 0.25]}
    ]
    share = counts[1, 0] / counts[1].sum()
    assert f"car &lt;b&gt; predicted as road: {share:.1%} of its pixels ({counts[1, 0]})" in source
    rows = re.findall(
        r"<tr><td>([^<]+)<td class=wide><div class=track>.*?<span[^>]*>([^<]+)", source
    )
    assert [name for name, _ in rows][:2] in (["road", "car &lt;b&gt;"], ["car &lt;b&gt;", "road"])
    assert dict(rows)["tree"] == "not in the data"
    assert "optim.lr 0.3" in text
    assert "waiting for input 1.0 s" in text
    assert "jax 0.10.2 torch -" in text
    assert "fcn-jax train " in text


def test_pictures_are_those_of_the_evaluation(make_run):
    folder = make_run()
    evaluated(folder)
    source, text = read(report.write([folder]))
    images = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', source)
    assert [kind for kind, _ in images] == ["jpeg", "png", "png"] * 3
    best = [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for _, code in images[:3]]
    np.testing.assert_array_equal(best[1], best[2], "the best image is predicted without an error")
    assert (best[1][:, 10:] == 1).all()
    assert "street/0 mIoU 1.000" in text
    assert source.count("<input type=range class=divide") == 3
    assert "#fa0a14" in source, "the legend has the colors of the classes"


def test_two_runs_are_compared(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = (
        make_run("one"),
        make_run("two", records=RECORDS[:5], train={"epochs": 2, "seed": 5}),
    )
    evaluated(one)
    path = report.write([one, other])
    assert path.resolve() == tmp_path / "report.html"
    source, text = read(path)
    assert "2 runs" in text
    data = json.loads(re.search(r"id=data>(.*?)</script>", source, re.DOTALL)[1])
    assert [curve["name"] for curve in data[0]["curves"]] == ["one", "two"]
    assert "train.seed 0 5" in text
    assert "finished after" in text
    assert "not finished: step 4" in text
    assert "cannot be compared" in text, "the second one was scored only during training"
    assert f"fcn-jax eval {other} stores one" in text
    assert source.count("stores those of the best") == 1


def test_run_that_has_just_begun(make_run):
    folder = make_run(records=(START,))
    _, text = read(report.write([folder]))
    assert "not finished: step 0" in text
    assert "Not evaluated yet." in text
    assert "No step has been recorded yet" in text
    assert "The run has not been evaluated yet" in text
    assert "None is stored." in text
    assert "No pictures are stored." in text


def test_run_without_readable_settings(make_run):
    folder = make_run(records=(START, train(2)))
    (folder / "config.json").write_text("{")
    (folder / "versions.json").unlink()
    _, text = read(report.write([folder]))
    assert "config.json cannot be read" in text
    assert "The settings of the run cannot be read." in text
    assert "The run recorded no settings that can be read." in text


def test_missing_pictures_are_left_out(make_run):
    folder = make_run()
    evaluated(folder)
    for path in folder.rglob("*_truth.png"):
        path.unlink()
    _, text = read(report.write([folder]))
    assert "No pictures are stored." in text


def test_losses_have_charts_of_their_own(make_run):
    records = [train(step, losses={"dice": 0.5, "focal": None}) for step in (2, 4)]
    source, _ = read(report.write([make_run(records=records)]))
    assert "training loss: dice<" in source
    assert "training loss: focal<" not in source, "it has no value"


def test_command_line_writes_the_page(make_run, tmp_path, capsys):
    folder, path = make_run(), tmp_path / "out" / "page.html"
    assert cli.main(["report", str(folder), "-o", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    read(path)
    assert cli.main(["report", str(folder), "-o", str(path)]) == 0, "a page is replaced"
    assert cli.main(["report", str(tmp_path / "none")]) == 2
    assert "does not exist; expected a run directory" in capsys.readouterr().err


def test_replaces_pages_only(make_run, tmp_path):
    path = tmp_path / "mine.html"
    path.write_text("mine")
    with pytest.raises(WriteError, match="exists and is not a page of fcn-jax report"):
        report.write([make_run()], path)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        report.write([tmp_path / "run"], tmp_path / "report.pdf")


def test_missing_jinja2_is_one_line(make_run, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "jinja2":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"needs the package jinja2, .*: pip install jinja2"):
        report.write([make_run()])
