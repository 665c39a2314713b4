"""What the processes of a job train together: batches, one stop for all, values on each of them.

In a single process, all functions do the usual thing without any communication.
"""

from __future__ import annotations

import functools
import hashlib
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from fcn_jax.runtime import distributed
from fcn_jax.train.sharding import Placement
from fcn_jax.train.signals import StopNow, StopRequest


def rows_of(sharding: Sharding | None, shape: Sequence[int]) -> list[int] | None:
    """Return the rows of a global array's first axis that this process needs; None for all.

    `sharding` is None for a single device.
    """
    if sharding is None or distributed.count() == 1:
        return None
    indices = sharding.addressable_devices_indices_map(tuple(shape)).values()
    return sorted({row for index in indices if index for row in range(*index[0].indices(shape[0]))})


def place_batch(
    batch: Mapping[str, np.ndarray],
    placement: Placement,
    rows: Sequence[int] | None,
    batch_size: int,
) -> dict[str, jax.Array]:
    """Make global arrays from the rows that this process has read.

    Args:
        batch: arrays [R,...].
        placement: of the global arrays [N,...].
        rows: numbers of the R rows, in order; None for all.
        batch_size: N.
    """
    sharding = placement.batch
    if sharding is None or rows is None:
        return placement.put_batch(batch)

    def part(array: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        wanted = range(*index[0].indices(batch_size))
        first = rows.index(wanted[0])  # A device has neighboring rows.
        return np.asarray(array[(slice(first, first + len(wanted)), *index[1:])])

    return {
        name: jax.make_array_from_callback(
            (batch_size, *array.shape[1:]), sharding, functools.partial(part, array)
        )
        for name, array in batch.items()
    }


def place_state(state: Any, placement: Placement) -> Any:
    """Place a tree of arrays that every process has.

    Raises:
        ConfigError: the values differ between the processes.
    """
    if distributed.count() == 1:
        return placement.put(state)
    values = jax.tree.map(np.asarray, state)
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(values):
        digest.update(leaf.tobytes())
    distributed.require_same({"initial values of the model": digest.hexdigest()})
    # `jax.device_put` would compare each array with those of the other processes.
    return jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: leaf[index]
        ),
        values,
        placement.of(state),
    )


def on_this_process(tree: Any) -> Any:
    """Return the whole arrays of a tree on a device of this process. All processes must call it."""
    if distributed.count() == 1:
        return tree

    def whole(leaf: jax.Array) -> jax.Array:
        if leaf.is_fully_addressable:
            return leaf
        if not leaf.is_fully_replicated:
            assert isinstance(leaf.sharding, NamedSharding)
            everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
            leaf = jax.jit(lambda x: x, out_shardings=everywhere)(leaf)
        return leaf.addressable_data(0)

    return jax.tree.map(whole, tree)


def begin_together(stop: StopRequest) -> None:
    """Wait for all processes; from now on a stop is agreed on.

    Raises:
        StopNow: one of them was asked to stop before.
    """
    stop.at_once = False
    if distributed.count() > 1 and (number := max(distributed.exchange(int(stop.signal or 0)))):
        stop.signal = signal.Signals(number)
        raise StopNow


class AgreedStop:
    """A stop after the same step in all processes.

    Before each step, the processes compute the largest number of the signals that they have
    received. The result is read one step later, so that no process waits for the others' devices.
    """

    def __init__(self, stop: StopRequest) -> None:
        """Take the stop request of this process, whose signal is set if another one received it."""
        self._stop, self._several = stop, distributed.count() > 1
        self._pending: jax.Array | None = None
        self._is_agreed = False
        if self._several:
            mesh = Mesh(np.array(jax.devices()), ("devices",))
            self._split = NamedSharding(mesh, PartitionSpec("devices"))
            self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def is_reached(self) -> bool:
        """Return whether all processes stop now. All must call it between the same steps."""
        if not self._several:
            return self._stop.signal is not None
        if self._is_agreed:
            return True
        before, number = self._pending, int(self._stop.signal or 0)
        mine = jax.make_array_from_callback(
            (jax.device_count(),), self._split, lambda _: np.full(1, number, np.int32)
        )
        self._pending = self._largest(mine)
        if jax.default_backend() == "cpu":  # Two programs at once may mix up their messages there.
            jax.block_until_ready(self._pending)
        if before is not None and (number := int(before)):
            self._stop.signal = signal.Signals(number)
            self._is_agreed = True
        return self._is_agreed

    def agree(self) -> None:
        """Stop at the next call of `is_reached`: the processes have agreed on it elsewhere."""
        self._is_agreed = True
