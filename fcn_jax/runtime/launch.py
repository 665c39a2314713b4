"""Start several processes of a command on this machine, as torchrun does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO, Any

from fcn_jax.errors import ConfigError
from fcn_jax.runtime import distributed

_PATIENCE = distributed.GRACE_SECONDS + 10
"""Seconds in which the other processes must end after one has failed."""


def launch(
    command: Sequence[str],
    processes: int,
    *,
    gpus_per_process: int = 1,
    cpu_devices: int | None = None,
    port: int | None = None,
) -> int:
    """Run `fcn-jax` several times at once, and wait until all processes have ended.

    The first process uses this one's output and terminal. Lines of the others begin with their
    number, such as "[1] ". SIGINT and SIGTERM are passed on to all of them, once each.

    Args:
        command: arguments of `fcn-jax`, of a command that knows `--coordinator`.
        processes: number of processes, at least 1.
        gpus_per_process: number of GPUs that each process sees; process 0 gets the first ones.
        cpu_devices: use CPUs, with this number of devices in each process.
        port: port at which they meet; a free one if None.

    Returns:
        0 if all processes end with 0. Otherwise the status of the first one that does not, 128 + N
        if signal N killed it; the others are ended.

    Raises:
        ConfigError: a number is out of range.
    """
    numbers = {
        "--processes": processes,
        "--gpus-per-process": gpus_per_process,
        "--cpu-devices": 1 if cpu_devices is None else cpu_devices,
    }
    if problems := [
        f"{name} {value}: expected 1 or more" for name, value in numbers.items() if value < 1
    ]:
        raise ConfigError("; ".join(problems))
    address = f"127.0.0.1:{free_port() if port is None else port}"
    started = list[subprocess.Popen[str]]()
    with _passing_on(started):
        for number in range(processes):
            joined = ["--coordinator", address, "--process-id", str(number)]
            pipe = subprocess.PIPE if number else None
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "fcn_jax",
                    *command,
                    *joined,
                    "--num-processes",
                    str(processes),
                ],
                env=_environment(number, gpus_per_process, cpu_devices),
                stdout=pipe,
                stderr=pipe,
                text=True,
                errors="replace",
                # Ctrl-C in a terminal then reaches only this process, which passes it on.
                start_new_session=True,
            )
            started.append(process)
            for stream, output in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                if stream is not None:
                    threading.Thread(target=_copy, args=(number, stream, output)).start()
        return _wait(started)


def _environment(number: int, gpus: int, cpu_devices: int | None) -> dict[str, str]:
    environment = dict(os.environ)
    if cpu_devices is not None:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(cpu_devices)}
    # JAX reads it for NVIDIA and AMD GPUs only.
    ids = range(number * gpus, (number + 1) * gpus)
    environment.setdefault("JAX_LOCAL_DEVICE_IDS", ",".join(map(str, ids)))
    return environment


def _copy(number: int, stream: IO[str], output: IO[str]) -> None:
    with stream:
        for line in stream:
            output.write(f"[{number}] {line}")
            output.flush()


def _wait(processes: Sequence[subprocess.Popen[str]]) -> int:
    """Wait for all processes; end them if one fails."""
    status, until = 0, None
    while running := [process for process in processes if process.poll() is None]:
        for process in processes:
            if process.returncode and not status:
                status, until = process.returncode, time.monotonic() + _PATIENCE
        if until is not None and time.monotonic() > until:
            for process in running:
                process.kill()
        time.sleep(0.05)
    status = status or next((p.returncode for p in processes if p.returncode), 0)
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _passing_on(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Within it, pass SIGINT and SIGTERM on; at the end, kill what still runs."""

    def handle(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = dict[signal.Signals, Any]()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def free_port() -> int:
    """Return a port of this machine that no program uses."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
