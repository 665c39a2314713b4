"""Real processes that train and evaluate together, over loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_jax import checkpoint
from fcn_jax.runtime.launch import free_port
from tests.helpers import jobs, scenes

STEPS = 8
RECIPE = (
    scenes.RECIPE.replace("batch_size = 8", "batch_size = 4")
    .replace("epochs = 5", "epochs = 2")
    .replace("[48, 48]", "[32, 32]")
)
LAUNCH = Path(__file__).parents[1] / "docs" / "launch"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes"), train=16, val=3)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_recipe(tmp_path_factory.mktemp("recipe"), RECIPE)


@pytest.fixture(scope="module")
def single(
    tiny_plugin: None, data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run of one process with one device."""
    return scenes.train_here(recipe, data, tmp_path_factory.mktemp("runs") / "single").run


@pytest.fixture(scope="module")
def double(data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes with one device each."""
    run = tmp_path_factory.mktemp("runs") / "double"
    outcome = jobs.launch(2, *scenes.arguments(recipe, data, run))
    assert outcome.returncode == 0, outcome.stderr
    assert "2 x cpu" in outcome.stderr
    assert "[1]" not in outcome.stdout + outcome.stderr  # only the first process prints
    assert outcome.stdout.startswith("time: ")
    return run


def records(run: Path, event: str) -> list[dict[str, Any]]:
    text = (run / "metrics.jsonl").read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()  # A line that is being written is left out.
    return [record for line in lines if (record := json.loads(line))["event"] == event]


def assert_same_training(run: Path, other: Path) -> None:
    """The losses and the final parameters differ by rounding only."""
    for event, keys in (("train", ("loss", "grad_norm", "lr")), ("val", ("miou",))):
        found = [
            {record["step"]: [record[key] for key in keys] for record in records(one, event)}
            for one in (run, other)
        ]
        assert found[0].keys() == found[1].keys()
        assert len(found[0]) == len(records(run, event))  # no step twice
        for step, values in found[0].items():
            np.testing.assert_allclose(values, found[1][step], rtol=2e-3, err_msg=f"step {step}")
    arrays = [checkpoint.read_arrays(one / "checkpoints" / str(STEPS)) for one in (run, other)]
    assert arrays[0].keys() == arrays[1].keys()
    for name, value in arrays[0].items():
        np.testing.assert_allclose(value, arrays[1][name], rtol=1e-3, atol=1e-4, err_msg=name)


_SHARE = """
import sys
import numpy as np
from fcn_jax.errors import ConfigError
from fcn_jax.runtime import distributed
number = int(sys.argv[2])
distributed.join(sys.argv[1], number, 2, seconds=60)
assert (distributed.index(), distributed.count()) == (number, 2)
assert distributed.exchange(number) == [0, 1]
long = b"x" * 3_000_000 + bytes([number])
gathered = distributed.gather(long)
assert (gathered is None) if number else (gathered == [long, long[:-1] + b"\1"])
counts = np.arange(6).reshape(2, 3) * (number + 1)
distributed.add_up([counts])
assert (counts == np.arange(6).reshape(2, 3) * 3).all()
assert distributed.first_decides(lambda: f"by {number}") == "by 0"
distributed.require_same({"a": {"b": 1}})
try:
    distributed.require_same({"a": {"b": number}})
except ConfigError as error:
    print(error)
distributed.leave(0, failed=False)
"""


def test_two_processes_share_values() -> None:
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _SHARE, address, str(number)],
            env=jobs.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for number in range(2)
    ]
    for status, said, errors in jobs.wait(processes):
        assert status == 0, errors
        assert said == (
            "process 1 differs from process 0: a.b (1, here 0); start all processes with the same "
            "arguments, recipe and data\n"
        )


@pytest.mark.slow
def test_two_processes_train_as_one(single: Path, double: Path) -> None:
    assert_same_training(double, single)
    files = [
        {str(path.relative_to(run)) for path in run.rglob("*") if "checkpoints" not in path.parts}
        for run in (double, single)
    ]
    assert files[0] - files[1] == {"report.html"}  # which the command line writes
    assert files[1] <= files[0]
    assert json.loads((double / "versions.json").read_text())["processes"] == 2
    scores = json.loads((double / "evaluations" / "training" / "scores.json").read_text())
    assert [one["id"] for one in scores["per_image"]] == ["0", "1", "2"]


@pytest.mark.slow
def test_four_processes_train_as_one(
    single: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "four"
    outcome = jobs.launch(4, *scenes.arguments(recipe, data, run))
    assert outcome.returncode == 0, outcome.stderr
    assert_same_training(run, single)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])  # three images: one process has none of them
def test_evaluation_counts_each_image_once(double: Path, tmp_path: Path, count: int) -> None:
    run = shutil.copytree(double, tmp_path / "run")
    names = ("--metrics", "boundary_iou,ece", "--json")
    outcomes = [jobs.alone("eval", str(run), *names)]
    folder = run / "evaluations" / "folder-val-native"
    stored = [json.loads((folder / "scores.json").read_text())]
    pictures = [{path.name: path.read_bytes() for path in folder.glob("*.png")}]
    outcomes.append(jobs.launch(count, "eval", str(run), *names))
    stored.append(json.loads((folder / "scores.json").read_text()))
    pictures.append({path.name: path.read_bytes() for path in folder.glob("*.png")})
    for outcome in outcomes:
        assert outcome.returncode == 0, outcome.stderr
    one, several = (json.loads(outcome.stdout) for outcome in outcomes)
    assert one == several
    assert np.sum(one["confusion"]) + one["pixels_ignored"] == 3 * 64 * 64
    for table in stored:
        del table["time"]
    assert stored[0] == stored[1]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 6


@pytest.mark.slow
def test_prediction_is_shared(double: Path, data: Path, tmp_path: Path) -> None:
    images = data / "images" / "val"
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    for folder, run in (("one", jobs.alone), ("two", lambda *args: jobs.launch(2, *args))):
        arguments = ["predict", str(double), str(tmp_path / "images")]
        outcome = run(*arguments, "-o", str(tmp_path / folder))
        assert outcome.returncode == 2
        assert outcome.stderr.count("error") == 1
        assert "1 of 3 images left out" in outcome.stderr
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("one", "two")
    )
    assert one == two
    assert len(one) == 4


def stopped(
    data: Path, recipe: Path, run: Path, number: signal.Signals, *more: str
) -> list[tuple[int, str, str]]:
    """Send a signal to the second of two processes when the first evaluation begins."""
    processes = jobs.start([scenes.arguments(recipe, data, run, *more)] * 2)
    try:
        scenes.wait_until(
            lambda: (run / "metrics.jsonl").exists() and records(run, "checkpoint"), processes[0]
        )
        processes[1].send_signal(number)
    finally:
        outcomes = jobs.wait(processes)
    return outcomes


@pytest.mark.slow
def test_a_stop_is_agreed_on_and_one_process_continues(
    single: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "stopped"
    outcomes = stopped(data, recipe, run, signal.SIGTERM)
    assert [status for status, _, _ in outcomes] == [143, 143], outcomes
    (step,) = [record["step"] for record in records(run, "end")]
    assert step < STEPS
    assert checkpoint.latest_spec(run)[0] == step
    assert f"after step {step}" in outcomes[0][1]
    assert outcomes[1][1] == ""
    outcome = jobs.alone(*scenes.arguments(recipe, data, run))
    assert outcome.returncode == 0, outcome.stderr
    assert_same_training(run, single)


@pytest.mark.slow
def test_two_processes_continue_the_run_of_one(
    single: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(single, tmp_path / "continued")
    for step in checkpoint_steps(run):
        if step > STEPS // 2:
            shutil.rmtree(run / "checkpoints" / str(step))
    outcome = jobs.launch(2, *scenes.arguments(recipe, data, run))
    assert outcome.returncode == 0, outcome.stderr
    assert f"after step {STEPS // 2}" in outcome.stderr
    assert_same_training(run, single)


def checkpoint_steps(run: Path) -> list[int]:
    return [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal()]


@pytest.mark.slow
def test_a_killed_process_ends_the_others(data: Path, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    processes = jobs.start([scenes.arguments(recipe, data, run, "--set", "train.epochs=400")] * 2)
    try:
        scenes.wait_until(
            lambda: (run / "metrics.jsonl").exists() and len(records(run, "train")) >= 6,
            processes[0],
        )
        processes[1].kill()
        began = time.monotonic()
    finally:
        outcomes = jobs.wait(processes)
    assert time.monotonic() - began < 30
    assert outcomes[0][0] == 1
    last = outcomes[0][2].splitlines()[-1]
    assert "process 1 was killed or lost its connection" in last
    assert "the work up to step" in last
    assert last.startswith("fcn-jax: error: process 0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--set", "optim.lr=0.07"),
            "process 1 differs from process 0: recipe.optim.lr (0.07, here 0.05); start all "
            "processes with the same arguments, recipe and data",
        ),
        (("--set", "optim.lrr=0.07"), "process 1 failed: "),
    ],
)
def test_processes_that_differ_are_named(
    data: Path, recipe: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    run = tmp_path / "run"
    arguments = scenes.arguments(recipe, data, run)
    began = time.monotonic()
    outcomes = jobs.wait(jobs.start([arguments, [*arguments, *more]]))
    assert time.monotonic() - began < 90
    assert all(status in (1, 2) for status, _, _ in outcomes), outcomes
    assert message in outcomes[0][2]
    assert "Traceback" not in outcomes[0][2] + outcomes[1][2]
    assert not run.exists()


@pytest.mark.slow
def test_an_error_of_one_process_names_its_cause_in_all(
    recipe: Path, tmp_path: Path, data: Path
) -> None:
    """The images of one process are damaged after the start."""
    roots = [shutil.copytree(data, tmp_path / name) for name in ("first", "second")]
    run = tmp_path / "run"
    processes = jobs.start(
        [scenes.arguments(recipe, root, run, "--set", "train.epochs=400") for root in roots]
    )
    try:
        scenes.wait_until(
            lambda: (run / "metrics.jsonl").exists() and len(records(run, "train")) >= 6,
            processes[0],
        )
        for path in (roots[1] / "images" / "train").iterdir():
            path.write_bytes(path.read_bytes()[:100])
    finally:
        outcomes = jobs.wait(processes)
    (first, _, errors), (second, _, cause) = outcomes
    assert (first, second) == (1, 2), outcomes
    assert "process 1: " in cause
    assert "truncated" in cause or "damaged" in cause or "cut off" in cause, cause
    assert "process 1 failed: " in errors


@pytest.mark.slow
def test_slurm_script_trains_with_the_processes_of_srun(
    single: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "fcn-jax").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fcn_jax "$@"\n')
    (bin_folder / "srun").write_text(
        "#!/usr/bin/env bash\n"
        "shift  # --kill-on-bad-exit=1\n"
        "export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2\n"
        'SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &\n'
        'SLURM_PROCID=0 SLURM_LOCALID=0 "$@"; first=$?\n'
        "wait $! && exit $first\n"
    )
    for path in bin_folder.iterdir():
        path.chmod(0o755)
    run = tmp_path / "slurm"
    variables = {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "RECIPE": str(recipe),
        "DATA": str(data),
        "RUN": str(run),
    }
    outcome = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch"],
        env=jobs.environment() | variables,
        capture_output=True,
        text=True,
        timeout=jobs.LIMIT,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads((run / "versions.json").read_text())["processes"] == 2
    assert_same_training(run, single)


@pytest.mark.slow
def test_local_script_trains_with_two_processes(
    single: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    program = tmp_path / "fcn-jax"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fcn_jax "$@"\n')
    program.chmod(0o755)
    run = tmp_path / "local"
    variables = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CPU_DEVICES": "1",
        "RECIPE": str(recipe),
        "RUN": str(run),
    }
    outcome = subprocess.run(
        ["bash", LAUNCH / "local.sh", "--data", data],
        env=jobs.environment() | variables,
        capture_output=True,
        text=True,
        timeout=jobs.LIMIT,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert_same_training(run, single)
