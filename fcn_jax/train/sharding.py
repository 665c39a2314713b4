"""Placement of state and batches on the devices of this process.

The batch is split over all devices; the state is on every device.
"""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fcn_jax.errors import ConfigError


def data_mesh(batch_size: int, accumulate_steps: int = 1) -> Mesh:
    """Return a mesh over all devices, with the one axis `data`.

    Raises:
        ConfigError: the batch cannot be split evenly, or there are several processes.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"training runs in one process, and JAX is initialized for {jax.process_count()}; "
            "train without jax.distributed.initialize"
        )
    count = jax.device_count()
    parts = count * accumulate_steps
    if batch_size % parts:
        accumulated = f"{accumulate_steps} optim.accumulate_steps on "
        raise ConfigError(
            f"data.batch_size is {batch_size}; "
            f"with {accumulated if accumulate_steps > 1 else ''}{count} devices it must be a "
            f"multiple of {parts}"
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))


def on_every_device(mesh: Mesh) -> NamedSharding:
    """Return the placement of the state."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Return the placement of a batch, which is split along its first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))
