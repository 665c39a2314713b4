"""Faults of the machine during a run: clocks, damaged files, permissions, killed parents."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fcn_jax import checkpoint
from fcn_jax.train.loop import Result
from fcn_jax.train.records import Records
from tests.helpers import scenes
from tests.train.test_faults import STEPS, assert_equal, records, steps, workers_of

RECIPE = scenes.RECIPE.replace("batch_size = 8", "batch_size = 4").replace(
    "epochs = 5", "epochs = 3"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes"), train=16, val=3)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_recipe(tmp_path_factory.mktemp("recipe"), RECIPE)


@pytest.fixture(scope="module")
def here(tiny_plugin: None, data: Path, recipe: Path) -> Callable[..., Result]:
    """Train in this process."""

    def run(directory: Path, *settings: str, root: Path = data) -> Result:
        return scenes.train_here(recipe, root, directory, *settings)

    return run


@pytest.fixture(scope="module")
def undisturbed(here: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return here(tmp_path_factory.mktemp("runs") / "undisturbed").run


def test_a_clock_that_jumps_changes_nothing(
    here: Callable[..., Result], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboardX")
    real, write, run = time.time, Records.write, tmp_path / "run"
    offset, jumps = 0.0, itertools.cycle([1e7, -1e7, 4000.0, -4000.0])

    def jump(self: Records, **record: Any) -> None:
        """Set the clock at every record, also at those of saves, which are just being written."""
        nonlocal offset
        offset += next(jumps)
        write(self, **record)
        if record["step"] == 6 and not stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + offset)
        patch.setattr(Records, "write", jump)
        stopped = False
        assert here(run, "log.tensorboard=true").stopped_by == "SIGTERM"
        offset -= 86400
        stopped = True
        here(run, "log.tensorboard=true")
    assert_equal(run, undisturbed)
    seconds = [
        value
        for record in records(run, "train", "step_seconds", "input_wait_seconds")
        for value in record
    ]
    assert all(0 <= value < 60 for value in seconds)
    assert [step for (step,) in records(run, "train", "step")] == list(range(1, STEPS + 1))
    from fcn_jax.train.logs.tensorboard import read_events

    shown = [
        event.step
        for path in sorted((run / "tensorboard").glob("*tfevents*"))
        for _, event in read_events(path)
        if any(value.tag == "train/loss" for value in event.summary.value)
    ]
    assert shown == list(range(1, STEPS + 1))


def test_skips_files_that_are_damaged_during_the_run_on_request(
    here: Callable[..., Result],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    broken = [root / "images" / "train" / "3.png", root / "images" / "val" / "1.png"]
    write = Records.write

    def damage(self: Records, **record: Any) -> None:
        write(self, **record)
        if record["event"] == "train" and record["step"] == 2:
            for path in broken:
                path.write_bytes(path.read_bytes()[:-40])

    with monkeypatch.context() as patch:
        patch.setattr(Records, "write", damage)
        result = here(tmp_path / "run", "data.damaged=skip", root=root)
    assert result.step == STEPS
    assert caplog.text.count(f"{broken[0]}: ") == 1
    assert "the next intact image replaces it (data.damaged=skip)" in caplog.text
    assert f"{broken[1]}: " in caplog.text
    assert "the image is left out (data.damaged=skip)" in caplog.text
    # A run that finds the damage when it is resumed goes on with the same images.
    last = checkpoint.read_arrays(tmp_path / "run" / "checkpoints" / str(STEPS))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    here(tmp_path / "run", "data.damaged=skip", root=root)
    again = checkpoint.read_arrays(tmp_path / "run" / "checkpoints" / str(STEPS))
    assert all((last[name] == again[name]).all() for name in last)


_WITHOUT_PRIVILEGE = "-dac_override,-dac_read_search"
"""Without these capabilities, permissions hold for root, too."""


@pytest.mark.slow
def test_a_directory_that_becomes_read_only_ends_the_run_in_one_line(
    recipe: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = scenes.command(*scenes.arguments(recipe, data, run, "--set", "train.epochs=400"))
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere")
        command = ["setpriv", "--bounding-set", _WITHOUT_PRIVILEGE, *command]
    process = subprocess.Popen(
        command,
        env=scenes.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folders = [run, run / "checkpoints", run / "samples"]
    try:
        scenes.wait_until(lambda: run.is_dir() and (run / "checkpoints" / "8").is_dir(), process)
        for folder in folders:
            folder.chmod(0o555)
        began = time.monotonic()
        _, err = process.communicate(timeout=120)
        assert time.monotonic() - began < 60
    finally:
        process.kill()
        process.wait()
        for folder in folders:
            folder.chmod(0o755)
    assert process.returncode == 1, err
    (said,) = [line for line in err.splitlines() if "error" in line.lower()]
    assert said.startswith(f"fcn-jax: error: {run}")
    assert "ermission denied" in said
    assert f"the work up to step {steps(run)[-1]} is saved; continue with: " in said
    assert "Traceback" not in err
    for step in steps(run):
        assert checkpoint.read_arrays(run / "checkpoints" / str(step))


_ORPHANS = """
import sys
from pathlib import Path
from fcn_jax.data.datasets.directory import DirectorySource
from fcn_jax.data.pipeline import train_batches
from fcn_jax.data.transforms import Augment
from fcn_jax.plugins import registry
if __name__ == "__main__":
    source = registry.default().dataset("folder").open(Path(sys.argv[1]), "train")
    batches = train_batches(source, augment=Augment((16, 16)), batch_size=2, seed=0, num_workers=1)
    next(batches)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_input_workers_end_with_a_killed_parent_and_outlive_sigterm(
    data: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(_ORPHANS)
    process = subprocess.Popen(
        [sys.executable, str(script), str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=scenes.environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    workers = workers_of(process.pid)
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    time.sleep(0.5)
    assert workers_of(process.pid) == workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "the workers go on without their parent"
        time.sleep(0.02)
