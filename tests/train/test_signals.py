"""Requests to stop: a signal sent twice, a later one, and one while Python cannot handle it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcn_jax.train import signals
from fcn_jax.train.signals import StopNow, StopRequest


@pytest.fixture
def received() -> Iterator[list[int]]:
    """The signals that reach the handler from before."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def test_raises_at_once_while_there_is_nothing_to_save(received: list[int]) -> None:
    def stopped() -> None:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(StopNow):
        stopped()
    assert received == []


def test_takes_a_signal_that_comes_twice_for_one_request(received: list[int]) -> None:
    with StopRequest() as stop:
        stop.at_once = False
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGTERM
    assert received == []


def test_a_later_signal_has_its_usual_effect(
    received: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_TOGETHER", 0.1)
    monkeypatch.setattr(os, "_exit", lambda status: None)  # that of the watching thread
    with StopRequest() as stop:
        stop.at_once = False
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    assert received == [signal.SIGTERM]


def test_restores_handlers_and_ends_its_thread(received: list[int]) -> None:
    import threading

    before = signal.getsignal(signal.SIGTERM), threading.active_count()
    for _ in range(3):
        with StopRequest():
            pass
    deadline = time.monotonic() + 5
    while threading.active_count() > before[1] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert signal.getsignal(signal.SIGTERM) == before[0]
    assert threading.active_count() <= before[1]
    assert signal.set_wakeup_fd(-1) == -1


_BLOCKED = """
import hashlib, sys, time
from fcn_jax.train import signals
signals._PATIENCE = 0.3
signals._TOGETHER = 0.3
with signals.StopRequest() as stop:
    stop.at_once = {at_once}
    print("ready", flush=True)
    # A long call without Python instructions, as a compilation is.
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)
"""


def _blocked(*, at_once: bool) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _BLOCKED.format(at_once=at_once)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    return process


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ends_a_process_that_cannot_react_and_has_nothing_to_save() -> None:
    process = _blocked(at_once=True)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert err == "fcn-jax: stopped by SIGTERM: nothing is written\n"


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_waits_for_a_step_and_obeys_a_second_signal() -> None:
    process = _blocked(at_once=False)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM


_COMPILES = """
import jax, jax.numpy as jnp
from fcn_jax import cli
from fcn_jax.train.signals import StopNow, StopRequest

def program(x):
    for number in range(60):
        x = jax.lax.conv_general_dilated(
            x, jnp.ones((3, 3, 32, 32)) * number, (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jnp.sin(x) + jnp.tanh(x * number)
    return x.sum()

def run(args):
    try:
        with StopRequest():
            lowered = jax.jit(jax.grad(program)).lower(jnp.ones((2, 16, 16, 32)))
            print("ready", flush=True)
            lowered.compile()
    except StopNow:
        print("stopped")
        return 143
    return 0

cli.train.run = run
cli.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_command_that_is_stopped_while_it_compiles_ends_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _COMPILES, "train"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "FCN_JAX_CACHE": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    # Python's own exit would wait for the compilation, which takes half a minute, and crash.
    assert time.monotonic() - began < 10
    assert (process.returncode, out) == (143, "stopped\n")
