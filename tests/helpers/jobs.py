"""Several processes of `fcn-jax` that form one job on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

from fcn_jax.runtime.launch import free_port
from tests.helpers import scenes

LIMIT = 240
"""Seconds after which a job hangs."""


def environment(devices: int = 1) -> dict[str, str]:
    """Return the environment of a process with this number of CPU devices."""
    flags = "--xla_backend_optimization_level=0"
    return {
        **scenes.environment(),
        "XLA_FLAGS": flags,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "OMP_NUM_THREADS": "1",
    }


def start(arguments: Sequence[Sequence[str]]) -> list[subprocess.Popen[str]]:
    """Start one process for each list of arguments."""
    address, count = f"127.0.0.1:{free_port()}", str(len(arguments))
    return [
        subprocess.Popen(
            scenes.command(
                *own,
                *("--coordinator", address, "--process-id", str(number)),
                *("--num-processes", count, "--connect-timeout", "60"),
            ),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for number, own in enumerate(arguments)
    ]


def wait(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for all processes: status, output and errors of each."""
    try:
        texts = [process.communicate(timeout=LIMIT) for process in processes]
        return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


def launch(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `fcn-jax launch` with one CPU device in each process."""
    options = ["--processes", str(count), "--cpu-devices", "1", "--"]
    return subprocess.run(
        scenes.command("launch", *options, *arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def alone(*arguments: str, devices: int = 1) -> subprocess.CompletedProcess[str]:
    """Run `fcn-jax` in one process."""
    return subprocess.run(
        scenes.command(*arguments),
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
