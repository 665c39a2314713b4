import json
from pathlib import Path

import pytest

from fcn_jax.train import logs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(logs.time, "perf_counter", lambda: now[0])
    return now


def test_speed_is_of_the_steps_since_the_last_record_without_pauses(clock: list[float]) -> None:
    window = logs.Window(batch_size=8, start=10)
    with window.waiting():
        clock[0] += 1
    clock[0] += 3
    window.pause(2)
    assert window.images_per_second(11) == 8 / 2
    clock[0] += 2
    assert window.figures(12) == {
        "step_seconds": 2,
        "images_per_second": 4,
        "input_wait_seconds": 0.5,
    }


def test_the_last_speed_is_shown_until_a_step_is_done(clock: list[float]) -> None:
    window = logs.Window(batch_size=8, start=0)
    assert window.images_per_second(0) == 0
    clock[0] += 2
    window.figures(1)
    window.restart(1)
    clock[0] += 5
    assert window.images_per_second(1) == 4
    assert window.images_per_second(2) == 8 / 5


def test_a_resumed_run_writes_what_came_after_its_checkpoint_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    records = logs.Records(path, after_step=2)
    records.write(step=3, loss=float("nan"))
    records.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss": None},
    ]
