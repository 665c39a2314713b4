"""One mesh over the devices: the batch is split over it, the state is on every device."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fcn_jax.errors import ConfigError


def data_mesh(batch_size: int, accumulate_steps: int = 1) -> Mesh:
    """A mesh with the one axis `data` over all devices. Raises `ConfigError` if the batch cannot be split evenly."""
    count = jax.device_count()
    if accumulate_steps > 1 and batch_size % (count * accumulate_steps):
        raise ConfigError(
            f"data.batch_size is {batch_size}; with {accumulate_steps} optim.accumulate_steps on {count} devices it must be a multiple of "
            f"{count * accumulate_steps}"
        )
    if batch_size % count:
        raise ConfigError(
            f"data.batch_size is {batch_size}; it must be a multiple of the number of devices, {count}"
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))


def on_every_device(mesh: Mesh) -> NamedSharding:
    """Placement of the state."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Placement of a batch: split along its first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's share of a batch -> the whole batch as global arrays."""
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
