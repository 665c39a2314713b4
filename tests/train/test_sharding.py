"""Placement of batches, and its errors."""

import jax
import pytest

from fcn_jax.errors import ConfigError
from fcn_jax.train import sharding


@pytest.fixture
def devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)


@pytest.mark.parametrize(
    ("batch_size", "accumulate_steps", "message"),
    [
        (6, 1, r"data\.batch_size is 6; with 4 devices it must be a multiple of 4"),
        (
            12,
            2,
            r"data\.batch_size is 12; with 2 optim\.accumulate_steps on 4 devices it must be a "
            "multiple of 8",
        ),
    ],
)
def test_rejects_a_batch_that_the_devices_cannot_split(
    devices, batch_size, accumulate_steps, message
):
    with pytest.raises(ConfigError, match=message):
        sharding.data_mesh(batch_size, accumulate_steps)


def test_rejects_several_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"one process.*without jax\.distributed\.init"):
        sharding.data_mesh(8)


def test_mesh_covers_all_devices():
    mesh = sharding.data_mesh(8 * jax.device_count(), accumulate_steps=2)
    assert mesh.shape == {"data": jax.device_count()}
