"""The lock of a run directory, and the process that holds it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from fcn_jax.errors import ConfigError
from fcn_jax.train.run_directory import RunDirectory


def test_names_the_process_that_trains_there(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as first:
        first.open(lambda: None)
        with (
            pytest.raises(
                ConfigError,
                match=rf"another process \(pid {os.getpid()} on host {socket.gethostname()}\) "
                r"trains in this directory; wait for it",
            ),
            RunDirectory(tmp_path / "run"),
        ):
            pass
        first.keep = True
    assert list((tmp_path / "run").iterdir()) == []
    with RunDirectory(tmp_path / "run"):
        pass


def test_replaces_the_name_of_a_killed_process(tmp_path: Path) -> None:
    holder = tmp_path / "process.json"
    holder.write_text('{"pid": 1, "host": "elsewhere"}')
    with RunDirectory(tmp_path) as directory:
        assert json.loads(holder.read_text())["pid"] == os.getpid()
        directory.open(lambda: None)
    assert not holder.exists()


@pytest.mark.parametrize("contents", ["", "[]", '{"pid": 3}', None])
def test_rejects_a_second_process_without_a_name(tmp_path: Path, contents: str | None) -> None:
    with RunDirectory(tmp_path):
        if contents is not None:
            (tmp_path / "process.json").write_text(contents)
        with (
            pytest.raises(ConfigError, match=r"another process trains in this directory"),
            RunDirectory(tmp_path),
        ):
            pass
