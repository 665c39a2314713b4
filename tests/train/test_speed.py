import pytest

from fcn_jax.train import speed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    return now


def test_speed_covers_the_steps_since_the_last_record_without_pauses(clock: list[float]) -> None:
    measured = speed.Speed(batch_size=8, start=10)
    with measured.waiting():
        clock[0] += 1
    clock[0] += 1
    with measured.paused():
        clock[0] += 2
    assert measured.images_per_second(11) == 8 / 2
    clock[0] += 2
    assert measured.figures(12) == {
        "step_seconds": 2,
        "images_per_second": 4,
        "input_wait_seconds": 0.5,
    }


def test_returns_the_last_speed_until_a_step_is_done(clock: list[float]) -> None:
    measured = speed.Speed(batch_size=8, start=0)
    assert measured.images_per_second(0) == 0
    clock[0] += 2
    measured.figures(1)
    measured.restart(1)
    clock[0] += 5
    assert measured.images_per_second(1) == 4
    assert measured.images_per_second(2) == 8 / 5
