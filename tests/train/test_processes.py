"""What the processes of a job train together. tests/test_hosts.py runs real ones."""

from __future__ import annotations

import signal

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from fcn_jax.runtime import distributed
from fcn_jax.train import processes
from fcn_jax.train.sharding import AXES, Placement
from fcn_jax.train.signals import StopNow, StopRequest


@pytest.fixture
def placement() -> Placement:
    """On one device, but with shardings, as on several ones."""

    class Placed(Placement):
        def _sharding(self, spec):
            return NamedSharding(self.mesh, spec)

    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    return Placed(mesh)


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the code of several processes, whose devices are all in this one."""
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "require_same", lambda what: None)


class Parts:
    """The sharding of a process that has some rows, in two devices."""

    def __init__(self, *slices: slice) -> None:
        self._slices = slices

    def addressable_devices_indices_map(self, shape):
        return {n: (rows, *map(slice, shape[1:])) for n, rows in enumerate(self._slices)}


@pytest.mark.parametrize(
    ("slices", "rows"),
    [
        ([slice(None)], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([slice(4, 6), slice(6, 8)], [4, 5, 6, 7]),
        ([slice(6, 8), slice(0, 2)], [0, 1, 6, 7]),
        ([slice(2, 4), slice(2, 4)], [2, 3]),
    ],
)
def test_rows_are_those_of_the_devices(several, slices, rows) -> None:
    assert processes.rows_of(Parts(*slices), (8, 4, 4)) == rows


def test_a_single_process_has_all_rows(placement) -> None:
    assert processes.rows_of(placement.batch, (8, 4, 4)) is None


@pytest.mark.parametrize("rows", [None, range(4)])
def test_places_a_batch_from_the_rows_of_this_process(several, placement, rows) -> None:
    batch = {"image": np.arange(24, dtype=np.uint8).reshape(4, 3, 2)}
    placed = processes.place_batch(batch, placement, rows, 4)
    np.testing.assert_array_equal(placed["image"], batch["image"])
    assert placed["image"].sharding == placement.batch


def test_places_the_state_that_all_processes_have(several, placement) -> None:
    state = {"a": jax.numpy.arange(4.0), "b": jax.numpy.ones(())}
    placed = processes.place_state(state, placement)
    jax.tree.map(np.testing.assert_array_equal, placed, state)
    assert placed["a"].sharding == placement.everywhere


def test_compares_the_initial_values_of_the_processes(several, placement, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(distributed, "require_same", seen.append)
    for value in (1.0, 1.0, 2.0):
        processes.place_state({"a": jax.numpy.full(3, value)}, placement)
    assert seen[0] == seen[1] != seen[2]


def test_a_single_process_stops_at_once() -> None:
    stop = StopRequest()
    agreed = processes.AgreedStop(stop)
    assert not agreed.is_reached()
    stop.signal = signal.SIGTERM
    assert agreed.is_reached()


def test_several_processes_stop_one_step_after_the_signal(several) -> None:
    stop = StopRequest()
    agreed = processes.AgreedStop(stop)
    assert [agreed.is_reached() for _ in range(3)] == [False] * 3
    stop.signal = signal.SIGINT
    assert [agreed.is_reached() for _ in range(3)] == [False, True, True]
    assert stop.signal is signal.SIGINT


def test_a_stop_that_was_agreed_on_elsewhere_is_reached_at_once(several) -> None:
    agreed = processes.AgreedStop(StopRequest())
    agreed.agree()
    assert agreed.is_reached()


def test_no_process_begins_if_one_was_asked_to_stop(several, monkeypatch) -> None:
    stop = StopRequest()
    monkeypatch.setattr(distributed, "exchange", lambda value: [value, int(signal.SIGTERM)])
    with pytest.raises(StopNow):
        processes.begin_together(stop)
    assert stop.signal is signal.SIGTERM
    monkeypatch.setattr(distributed, "exchange", lambda value: [value, 0])
    stop.signal = None
    processes.begin_together(stop)
    assert not stop.at_once


def test_a_signal_of_another_process_counts_as_one_of_this_process() -> None:
    announced = []
    with StopRequest(lambda *what: announced.append(what)) as stop:
        stop.at_once = False
        stop.receive(signal.SIGTERM)
        for _ in range(1000):  # the handler runs between instructions
            if stop.signal:
                break
        assert stop.signal is signal.SIGTERM
        stop.receive(signal.SIGINT)
        assert stop.signal is signal.SIGTERM
    assert announced == []
