"""Several processes on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fcn_jax import cli
from fcn_jax.runtime import launch


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Make `python -m fcn_jax` run this text in the launched processes."""

    def make(text: str) -> None:
        (tmp_path / "fcn_jax").mkdir()
        (tmp_path / "fcn_jax" / "__main__.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.chdir(tmp_path)

    return make


def test_starts_each_process_with_its_number(program, capfd) -> None:
    program(
        "import os, sys\n"
        "print(*sys.argv[1:], os.environ['JAX_LOCAL_DEVICE_IDS'])\n"
        "print('warning', file=sys.stderr)\n"
    )
    assert launch.launch(["train", "x"], 3, gpus_per_process=2, port=4321) == 0
    out, err = capfd.readouterr()
    lines = sorted(out.splitlines())
    joined = "train x --coordinator 127.0.0.1:4321 --process-id"
    assert lines == [
        f"[1] {joined} 1 --num-processes 3 2,3",
        f"[2] {joined} 2 --num-processes 3 4,5",
        f"{joined} 0 --num-processes 3 0,1",
    ]
    assert sorted(err.splitlines()) == ["[1] warning", "[2] warning", "warning"]


def test_ends_all_processes_if_one_fails(program, monkeypatch) -> None:
    monkeypatch.setattr(launch, "_PATIENCE", 0.2)
    program(
        "import sys, time\n"
        "sys.exit(3) if sys.argv[sys.argv.index('--process-id') + 1] == '1' else time.sleep(60)\n"
    )
    began = time.monotonic()
    assert launch.launch(["train"], 2) == 3
    assert time.monotonic() - began < 20


def test_returns_the_signal_that_killed_a_process(program) -> None:
    program("import os, sys\nos.kill(os.getpid(), 9 * ('1' in sys.argv))\n")
    assert launch.launch(["train"], 2) == 128 + signal.SIGKILL


def test_passes_signals_on_to_all_processes(program) -> None:
    program(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "import os; os.write(1, b'ready\\n')\n"  # in one piece
        "time.sleep(60)\n"
    )
    root = str(Path(launch.__file__).parents[2])
    text = f"import sys; sys.path.insert(0, {root!r}); from fcn_jax.runtime.launch import launch; "
    process = subprocess.Popen(
        [sys.executable, "-c", text + "sys.exit(launch(['train'], 2))"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert {process.stdout.readline(), process.stdout.readline()} == {"ready\n", "[1] ready\n"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0", "--", "train"], "--processes 0: expected 1 or more"),
        (
            ["--processes", "2", "--cpu-devices", "0", "--", "train"],
            "--cpu-devices 0: expected 1 or more",
        ),
        (["--processes", "2"], "no command after --; expected train, eval or predict"),
        (["--processes", "2", "--", "data"], "'data' after --; expected train, eval or predict"),
    ],
)
def test_rejects_arguments(arguments, message, capsys) -> None:
    assert cli.main(["launch", *arguments]) == 2
    assert message in capsys.readouterr().err
