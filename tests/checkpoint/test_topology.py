"""Checkpoints that travel: between numbers of devices, of processes, and ways to split arrays."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.checkpoint import saves_and_restores as both
from tests.helpers import scenes


def start(devices: int, **asked: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", both.__name__, json.dumps(asked, default=str)],
        cwd=Path(__file__).parents[2],
        env=scenes.environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    outcomes = [process.communicate(timeout=200) for process in processes]
    for process, (out, err) in zip(processes, outcomes, strict=True):
        assert process.returncode == 0, err
        assert "done on" in out


def here(fsdp: int = 1) -> Any:
    return both.mesh(jax.local_devices()[:1], fsdp)


def test_restores_values_and_the_placement_that_is_asked_for(tmp_path: Path) -> None:
    both.save(tmp_path, here())
    both.check(tmp_path, here())


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 4, 8])
def test_from_one_device_to_eight_and_back(fsdp: int, tmp_path: Path) -> None:
    one, eight, other = (tmp_path / name for name in ("one", "eight", "other"))
    both.save(one, here())
    finish(start(8, restore=one, save=eight, fsdp=fsdp))
    both.check(eight, here())
    finish(start(8, restore=eight, save=other, fsdp=8 if fsdp == 1 else 1))  # another mesh
    both.check(other, here())


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 4])
def test_from_one_process_to_two_and_back(fsdp: int, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    both.save(one, here())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    asked = {"restore": one, "save": two, "fsdp": fsdp, "coordinator": coordinator, "processes": 2}
    finish(*(start(2, **asked, process=process) for process in range(2)))
    assert [path.name for path in (two / "checkpoints").iterdir()] == [str(both.STEP)]
    both.check(two, here())
