"""Placement of the training state and of batches on a mesh of devices.

The mesh has the axes `data`, `fsdp` and `spatial`. A batch is split over `data` and `fsdp`, and the
rows of its images over `spatial`; XLA's partitioner exchanges the rows at the borders. The state is
split over `fsdp` only, by one rule on the shape of an array: that of `fsdp` in big_vision
(google-research/big_vision, sharding.py). The optimizer's state and the averages of a parameter
have its shape, so they are placed as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from fcn_jax.config import MeshConfig
from fcn_jax.errors import ConfigError

AXES = ("data", "fsdp", "spatial")


def axis_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """Return the sizes of the mesh's axes, with the remaining devices instead of -1.

    Raises:
        ConfigError: two axes are -1, or the sizes do not fit the number of devices.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    settings = ", ".join(f"mesh.{axis} = {size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ConfigError(
            f"{settings}: at most one of them can be -1, which takes the remaining devices"
        )
    used = math.prod(size for size in sizes.values() if size != -1)
    fits = devices % used == 0 if open_axes else devices == used
    if not fits:
        needed = f"a multiple of {used}" if open_axes else f"{used}"
        raise ConfigError(
            f"{settings}: {needed} devices are needed, and JAX has {devices}; change the sizes "
            "(-1 takes the remaining devices), or the devices that JAX sees"
        )
    return {axis: devices // used if size == -1 else size for axis, size in sizes.items()}


def batch_parts(config: MeshConfig) -> int:
    """Return the number of parts of a batch: `data` times `fsdp`.

    Raises:
        ConfigError: as `axis_sizes`.
    """
    sizes = axis_sizes(config, jax.device_count())
    return sizes["data"] * sizes["fsdp"]


def make_placement(
    config: MeshConfig,
    batch_size: int | None,
    *,
    accumulate_steps: int = 1,
    rows: int | None = None,
) -> Placement:
    """Return the placement on all devices.

    Args:
        config: section `mesh` of the recipe.
        batch_size: number of images of a batch, over all devices; not checked if None.
        accumulate_steps: parts in which a device computes its images.
        rows: height of the training crop, in pixels; not checked if None.

    Raises:
        ConfigError: the mesh does not fit the devices, the batch or the crop.
    """
    count = jax.device_count()
    sizes = axis_sizes(config, count)
    split, problems = sizes["data"] * sizes["fsdp"], []
    if batch_size is not None and batch_size % (split * accumulate_steps):
        accumulated = f"{accumulate_steps} optim.accumulate_steps on "
        over = f" that split it into {split} parts" if split != count else ""
        problems.append(
            f"data.batch_size is {batch_size}; "
            f"with {accumulated if accumulate_steps > 1 else ''}{count} devices{over} it must be a "
            f"multiple of {split * accumulate_steps}"
        )
    if rows is not None and rows % sizes["spatial"]:
        problems.append(
            f"data.crop_size has {rows} rows; with mesh.spatial = {sizes['spatial']} they must be "
            f"a multiple of {sizes['spatial']}"
        )
    if problems:
        raise ConfigError("; ".join(problems))
    mesh = jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Placement(mesh, config.fsdp_min_mib)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where arrays lie on a mesh with the axes `AXES`.

    Attributes:
        mesh: the devices; or their numbers alone, to compute placements without devices.
        fsdp_min_mib: arrays of more MiB are split over `fsdp`.
    """

    mesh: Mesh | AbstractMesh
    fsdp_min_mib: float = 4.0

    def __str__(self) -> str:
        """The devices, and how they are divided if that is not over the batch alone."""
        kind = jax.devices()[0].device_kind
        sizes = self.mesh.shape
        parts = ", ".join(f"{axis} {sizes[axis]}" for axis in AXES)
        return f"{self.mesh.size} x {kind}" + f" ({parts})" * (sizes["data"] != self.mesh.size)

    def spec(self, array: Any) -> PartitionSpec:
        """Return the partition of an array of the state, or of its shape and dtype.

        The largest axis that `fsdp` divides is split, the last of several of one size. An array
        without such an axis is on all devices.
        """
        parts = self.mesh.shape["fsdp"]
        shape = array.shape
        large = math.prod(shape) * np.dtype(array.dtype).itemsize > self.fsdp_min_mib * 2**20
        axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
        if parts == 1 or not large or not axes:
            return PartitionSpec()
        split = max(axes, key=lambda axis: (shape[axis], axis))
        return PartitionSpec(*(None,) * split, "fsdp")

    def of(self, state: Any) -> Any:
        """Return the shardings of a tree of arrays, or of their shapes; None for one device."""
        return jax.tree.map(lambda leaf: self._sharding(self.spec(leaf)), state)

    @property
    def everywhere(self) -> NamedSharding | None:
        """The sharding of an array that is on all devices."""
        return self._sharding(PartitionSpec())

    @property
    def batch(self) -> NamedSharding | None:
        """The sharding of images [N,h,w,C] and masks [N,h,w] or [N,h,w,K]."""
        return self._sharding(PartitionSpec(("data", "fsdp"), "spatial"))

    def _sharding(self, spec: PartitionSpec) -> NamedSharding | None:
        # With None, the program for one device is the one that JAX lowers without a mesh.
        return None if self.mesh.size == 1 else NamedSharding(self.mesh, spec)

    def put(self, state: Any) -> Any:
        """Place a tree of arrays of the only process; see `fcn_jax.train.processes`."""
        return jax.device_put(state, self.of(state))

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Place images and masks of the only process; see `fcn_jax.train.processes`."""
        return dict(jax.device_put(dict(batch), self.batch))

    # Within a step:

    def gathered(self, params: Any) -> Any:
        """Gather parameters. Forward and backward pass share the result."""
        if self.mesh.shape["fsdp"] == 1:
            return params
        return jax.lax.with_sharding_constraint(params, self.everywhere)

    def reduced(self, grads: Any) -> Any:
        """Sum gradients over the devices, each into the partition of its parameter."""
        if self.mesh.size == 1:
            return grads
        return jax.lax.with_sharding_constraint(grads, self.of(grads))


def table(placement: Placement, state: Any) -> dict[str, list[str | None]]:
    """Return array name -> partition of all arrays of a state, or of their shapes.

    A partition names the mesh axis over which each axis of the array is split; axes at the end that
    are not split are left out.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    return {
        name.removesuffix(".value"): list(placement.spec(leaf))
        for name, (_, leaf) in zip(names, leaves, strict=True)
    }
