"""`fcn-jax data check` and `fcn-jax data browse`: output, files and exit status."""

import json

import pytest

from fcn_jax import cli
from tests.helpers import scenes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes"), train=4, val=2)


def run(capsys, *arguments):
    status = cli.main(["data", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_check_prints_a_report_and_writes_json(data, tmp_path, capsys):
    path = tmp_path / "report.json"
    status, out, err = run(capsys, "check", data, "--set", "data.batch_size=4", "--json", path)
    assert status == 0
    assert err == ""
    assert "7 classes, 6 images in 2 splits" in out
    assert out.splitlines()[-1].startswith("Result: 0 errors and ")
    report = json.loads(path.read_text())
    assert report["ok"] is True
    assert report["splits"]["train"]["images"] == 4
    assert run(capsys, "check", data, "--json", path)[0] == 0, "a report can be replaced"


def test_check_fails_on_errors(tmp_path, capsys):
    root = scenes.write_scenes(tmp_path, train=2, val=1)
    (root / "images/train/1.png").write_bytes(b"no image")
    status, out, err = run(capsys, "check", root)
    assert status == 1
    assert err == ""
    assert str(root / "images/train/1.png") in out
    assert "Result: 1 error and" in out


def test_check_rejects_bad_input_in_one_line(data, tmp_path, capsys):
    status, out, err = run(capsys, "check", tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith("fcn-jax: error: ")
    (tmp_path / "mine.json").write_text("{}")
    status, _, err = run(capsys, "check", data, "--json", tmp_path / "mine.json")
    assert status == 2
    assert "is not a report of fcn-jax data check" in err
    assert run(capsys, "check", "camvid")[0] == 2


def test_browse_writes_a_page(data, tmp_path, capsys):
    path = tmp_path / "page.html"
    arguments = ("-o", path, "--split", "val", "--count", 1, "--draws", 2, "--seed", 3)
    status, out, err = run(capsys, "browse", data, *arguments, "--set", "data.crop_size=[32,32]")
    assert (status, out, err) == (0, f"{path}\n", "")
    page = path.read_text()
    assert page.count("<article") == 1
    assert "1 of 2 images" in page
    assert "crop_size = [32, 32]" in page
