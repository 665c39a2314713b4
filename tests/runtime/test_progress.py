"""Progress of a task on a terminal and elsewhere."""

import io
import time

import pytest

from fcn_jax.runtime import progress
from fcn_jax.runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_prints_a_line_every_10_seconds_without_a_terminal(clock):
    stream = io.StringIO()
    with Progress("reading masks", 40, stream=stream) as bar:
        for _ in range(40):
            clock[0] += 1
            bar.advance()
    assert stream.getvalue().splitlines() == [
        "reading masks: 10 of 40",
        "reading masks: 20 of 40",
        "reading masks: 30 of 40",
        "reading masks: 40 of 40",
    ]


def test_prints_lines_while_an_item_takes_long(monkeypatch):
    monkeypatch.setattr(progress, "_PERIOD", 0.05)
    stream = io.StringIO()
    with Progress("verify", 5, stream=stream) as bar:
        bar.update(2, text="conv1")
        until = time.monotonic() + 5
        while stream.getvalue().count("\n") < 3 and time.monotonic() < until:
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 3
    assert set(lines) == {"verify: 2 of 5, conv1"}
    time.sleep(0.15)
    assert len(stream.getvalue().splitlines()) <= len(lines) + 1, "no lines after the end"


def test_kept_bar_prints_its_first_and_last_state(clock):
    stream = io.StringIO()
    with Progress("training", 3, keep=True, stream=stream) as bar:
        bar.say("[bold] is not markup")
        for step in range(1, 4):
            clock[0] += 1
            bar.update(step, text=f"loss {1 / step:.2f}")
    assert stream.getvalue().splitlines() == [
        "[bold] is not markup",
        "training: 1 of 3, loss 1.00",
        "training: 3 of 3, loss 0.33",
    ]


def test_total_may_be_unknown_or_change(clock):
    stream = io.StringIO()
    with Progress("verify", stream=stream) as bar:
        clock[0] += 20
        bar.update(1)
        clock[0] += 20
        bar.update(2, 5, "conv1")
    assert stream.getvalue().splitlines() == ["verify: 1", "verify: 2 of 5, conv1"]


@pytest.mark.parametrize("unit", ["", "bytes"])
def test_draws_a_bar_on_a_terminal(unit, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    with Progress("weights.pth", 8, unit=unit, keep=True, stream=stream) as bar:
        bar.update(8, text="done")
    assert "weights.pth" in stream.getvalue()
    assert ("8/8 bytes" if unit else "8/8") in stream.getvalue()
