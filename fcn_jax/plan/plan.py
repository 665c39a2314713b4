"""The plan of a training run: memory, least time, and efficiency on many devices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import AbstractMesh, AxisType

from fcn_jax.config import AUTO, Config
from fcn_jax.errors import ConfigError
from fcn_jax.plan import scaling, training
from fcn_jax.plan.kinds import Kind
from fcn_jax.train import auto
from fcn_jax.train.settings import require_needed
from fcn_jax.train.sharding import AXES, Placement, axis_sizes


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bounds for a recipe on devices of one kind. All bytes and FLOPs are those of one device.

    Attributes:
        kind: of the devices.
        devices: their number.
        mesh: the sizes of its axes "data", "fsdp" and "spatial".
        images: of a step, on each device; with `spatial` above 1, a part of each.
        memory: bytes by part, when most is held.
        largest: images of a step that fit on each device; 0 if none does.
        flops: FLOPs of a step by "dtype, precision" of the operands.
        bytes: that a step reads and writes.
        reduced: bytes that the devices add up.
        compute_seconds: the FLOPs at the peak speed.
        alone_seconds: a step on one device, each operation at the speed of its FLOPs or bytes.
        here: bounds for this number of devices.
        table: bounds for other numbers, with as many images on each device.
        notes: what was assumed.
    """

    kind: Kind
    devices: int
    mesh: Mapping[str, int]
    images: int
    memory: Mapping[str, int]
    largest: int
    flops: Mapping[str, int]
    bytes: int
    reduced: int
    compute_seconds: float
    alone_seconds: float
    here: scaling.Row
    table: tuple[scaling.Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of memory of all parts."""
        return sum(self.memory.values())

    @property
    def available(self) -> float:
        """Bytes of memory that JAX takes by default."""
        return self.kind.memory * self.kind.usable

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.total <= self.available

    @property
    def bytes_seconds(self) -> float:
        """The time of the bytes alone, at the memory's bandwidth."""
        return self.bytes / self.kind.bandwidth

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON. Times are in seconds, sizes in bytes."""
        table = dataclasses.asdict(self)
        rows = {"here": [self.here], "table": self.table}
        for name, found in rows.items():
            table[name] = [
                dataclasses.asdict(row)
                | {"efficiency": row.efficiency(self.alone_seconds)}
                | {"images_per_second": row.images_per_second}
                for row in found
            ]
        table["here"] = table["here"][0]
        return table | {
            "memory_total": self.total,
            "memory_available": self.available,
            "fits": self.fits,
            "bytes_seconds": self.bytes_seconds,
        }


def plan(config: Config, kind: Kind, devices: int, classes: int | None = None) -> Plan:
    """Plan the training of a recipe, without its data and without the devices.

    Args:
        config: the recipe. For settings that are "auto", the defaults are assumed; a note says so.
        kind: of the devices.
        devices: their number, at least 1.
        classes: number of classes of the dataset; by default the recipe's.

    Raises:
        ConfigError: settings are wrong or do not fit together, the batch cannot be split over the
            devices, or the number of classes is not known.
        PluginError: as `fcn_jax.train.setup.make` says.
    """
    if classes is None:
        classes = training.number_of_classes(config)
    config, notes = _decided(config)
    require_needed(config)
    mesh, images = _split(config, devices)
    config = one_device(config, mesh)
    step = training.trace(config, classes, images, kind.platform)
    larger = training.trace(config, classes, 2 * images, kind.platform)
    placement = Placement(
        AbstractMesh(tuple(mesh.values()), AXES, (AxisType.Auto,) * 3), config.mesh.fsdp_min_mib
    )
    memory, doubled = step.parts(placement), larger.parts(placement)
    largest = _largest(
        kind, images, sum(memory.values()), sum(doubled.values()), config.optim.accumulate_steps
    )
    alone = step.work.seconds(kind)

    def row(count: int) -> scaling.Row:
        return scaling.row(kind, count, images * count // mesh["spatial"], alone, step.reduced)

    return Plan(
        kind=kind,
        devices=devices,
        mesh=mesh,
        images=images,
        memory=memory,
        largest=largest,
        flops={", ".join(key): count for key, count in step.work.flops.items()},
        bytes=step.work.bytes,
        reduced=step.reduced,
        compute_seconds=step.work.compute_seconds(kind),
        alone_seconds=alone,
        here=row(devices),
        table=tuple(row(n) for n in scaling.DEVICES if n % (mesh["fsdp"] * mesh["spatial"]) == 0),
        notes=tuple(notes),
    )


def _decided(config: Config) -> tuple[Config, list[str]]:
    """The recipe without "auto", and a note on each setting that matters here."""
    known = auto.provisional(config)
    notes = [
        f"data.{name} is 'auto': {value} is assumed; set another with --set data.{name}={value}"
        for name, value in (
            ("crop_size", str(list(known.data.crop_size)).replace(" ", "")),
            ("batch_size", known.data.batch_size),
        )
        if getattr(config.data, name) == AUTO
    ]
    return known, notes


def _split(config: Config, devices: int) -> tuple[dict[str, int], int]:
    """The sizes of the mesh's axes, and the images of a step on each device."""
    try:
        mesh = axis_sizes(config.mesh, devices)
    except ConfigError as error:
        raise ConfigError(f"--devices {devices}: {error}") from error
    batch, accumulated = config.data.batch_size, config.optim.accumulate_steps
    split, rows = mesh["data"] * mesh["fsdp"], config.data.crop_size[0]
    parts, problems = split * accumulated, []
    if batch % parts:
        nearest = max(parts, round(batch / parts) * parts)
        with_parts = f" and optim.accumulate_steps = {accumulated}" if accumulated > 1 else ""
        problems.append(
            f"data.batch_size is {batch}; with --devices {devices}{with_parts} it must be a "
            f"multiple of {parts}, such as --set data.batch_size={nearest}"
        )
    if rows % mesh["spatial"]:
        problems.append(
            f"data.crop_size has {rows} rows; with mesh.spatial = {mesh['spatial']} they must be a "
            f"multiple of {mesh['spatial']}"
        )
    if problems:
        raise ConfigError("; ".join(problems))
    return mesh, batch // split


def one_device(config: Config, mesh: Mapping[str, int]) -> Config:
    """Return the recipe with the rows of a crop that one device of a mesh computes."""
    height, width = config.data.crop_size
    data = config.data.model_copy(update={"crop_size": (height // mesh["spatial"], width)})
    return config.model_copy(update={"data": data})


def _largest(kind: Kind, images: int, memory: int, doubled: int, parts: int) -> int:
    """The largest number of images that fits, from the memory of `images` and of twice as many."""
    each = (doubled - memory) / images
    fixed = memory - each * images
    most = (kind.memory * kind.usable - fixed) / each
    return max(0, math.floor(most / parts) * parts)
