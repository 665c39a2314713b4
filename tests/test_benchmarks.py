"""The benchmarks measure the same work as the library does."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fcn_jax.api import Example, Record, Source


class WholeSource(Source):
    """A source of one image that records how it was decoded."""

    def __init__(self):
        self.calls = []

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Record("0", b"", b"")

    def decode(self, record):
        self.calls.append("whole")
        return Example("0", np.zeros((8, 12, 3), np.uint8), np.zeros((8, 12), np.uint8))


class ResizingSource(WholeSource):
    """A source that can also decode at other sizes."""

    def decode_resized(self, record, factor):
        self.calls.append(round(factor, 3))
        return Example("0", np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8))


@pytest.mark.needs_torch
def test_input_is_timed_as_the_pipeline_decodes_it(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # benchmarks are not installed
    benchmark = importlib.import_module("benchmarks.input")
    for source, call in ((WholeSource(), "whole"), (ResizingSource(), 0.5)):
        stages = benchmark.measure(source, (4, 4), (0.5, 0.5), rounds=2)
        assert tuple(stages) == benchmark.STAGES
        assert source.calls == [call] * 2


@pytest.mark.needs_torch
def test_label_check_is_timed_cold_and_warm(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    benchmark = importlib.import_module("benchmarks.label_look")
    root = benchmark.write(tmp_path / "data", 4)
    for _ in range(2):
        figures = benchmark.measure(root)
        assert figures["masks_per_second"] == pytest.approx(4 / figures["seconds"])
    assert len({path.read_bytes() for path in (root / "masks" / "train").iterdir()}) == 4


def run(*arguments):
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--task",
        "logits",
        "--batch",
        "1",
        "--size",
        "64",
        "64",
        "--rounds",
        "2",
        *arguments,
    ]
    return subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300
    )


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    "few", [("--processes", "0"), pytest.param(("--rounds", "1"), marks=pytest.mark.slow)]
)
def test_rejects_too_few_rounds_or_processes(tmp_path, few):
    done = run("--out", str(tmp_path / "speed.json"), *few)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "--processes must be at least 1 and --rounds at least 2"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.needs_torch
def test_contenders_run_in_their_own_processes_and_write_results(tmp_path):
    out = tmp_path / "speed.json"
    done = run("--contender", "torch eager", "--processes", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(out.read_text())["tasks"]
    assert set(task["contenders"]) == {"fcn_jax", "torch eager"}
    for row in task["contenders"].values():
        assert len(row["rounds"]) == 2 * 2
        assert row["seconds"] > 0
        assert row["bytes"] > 0
        assert row["first_call_bytes"] > 0
    assert out.with_suffix(".png").exists()


@pytest.mark.slow
@pytest.mark.needs_torch
def test_stops_if_the_contenders_disagree(tmp_path):
    program = """
import numpy as np
from benchmarks import __main__, tasks
from benchmarks.setting import Setting
def check(task, answers, dtype): raise SystemExit("they disagree")
tasks.check_agreement = check
if __name__ == "__main__":
    setting, peak = Setting(batch=1, size=(64, 64)), {"flops": 1.0, "bytes": 1.0}
    __main__.measure("logits", setting, 2, peak, [tasks.LIBRARY])
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("they disagree")
