"""Benchmarks that time parts of the library: that it is the work which the library does."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fcn_jax.api import Example, Record


class Whole:
    """One image, and what was asked of it."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Record("0", b"", b"")

    def decode(self, record):
        self.asked.append("whole")
        return Example("0", np.zeros((8, 12, 3), np.uint8), np.zeros((8, 12), np.uint8))


class Resizing(Whole):
    """Decodes at other sizes too."""

    def decode_resized(self, record, factor):
        self.asked.append(round(factor, 3))
        return Example("0", np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8))


def test_the_hosts_work_is_timed_as_the_pipeline_does_it(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # benchmarks are not installed
    benchmark = importlib.import_module("benchmarks.input")
    for source, asked in ((Whole(), "whole"), (Resizing(), 0.5)):
        stages = benchmark.measure(source, (4, 4), (0.5, 0.5), rounds=2)
        assert tuple(stages) == benchmark.STAGES
        assert source.asked == [asked] * 2


def test_the_look_over_masks_is_timed_cold_and_warm(tmp_path, monkeypatch):
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
@pytest.mark.parametrize("few", [("--processes", "0"), ("--rounds", "1")])
def test_too_few_to_measure_is_said_before_anything_is_done(tmp_path, few):
    done = run("--out", str(tmp_path / "speed.json"), *few)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("at least 1 process and 2 rounds")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.needs_torch
def test_contenders_run_in_processes_of_their_own_and_leave_figures(tmp_path):
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
def test_a_benchmark_of_two_different_computations_ends_and_says_so(tmp_path):
    program = """
import numpy as np
from benchmarks import __main__, tasks
from benchmarks.setting import Setting
def check(task, answers, dtype): raise SystemExit("they disagree")
tasks.check_agreement = check
if __name__ == "__main__":
    __main__.measure("logits", Setting(batch=1, size=(64, 64)), 2, {"flops": 1.0, "bytes": 1.0}, [tasks.LIBRARY])
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("they disagree")
