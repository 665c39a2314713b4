"""The time that devices take to add up their gradients, and how well many devices are used."""

from __future__ import annotations

import dataclasses
import math

from fcn_jax.plan.kinds import Kind

DEVICES = (1, 4, 16, 64, 256, 1024, 4096)
"""Numbers of devices of the table."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Bounds for a number of devices, with the same batch on each device.

    Attributes:
        devices: their number.
        images: of a step, on all devices.
        reduce_seconds: of the all-reduce.
        seconds: of a step if the all-reduce runs during the backward pass.
        seconds_apart: of a step if it runs after the backward pass.
    """

    devices: int
    images: int
    reduce_seconds: float
    seconds: float
    seconds_apart: float

    def efficiency(self, alone: float) -> tuple[float, float]:
        """Time of a step on one device, relative to here: with the all-reduce apart, and during.

        `alone` is the time on one device, in seconds.
        """
        return alone / self.seconds_apart, alone / self.seconds

    @property
    def images_per_second(self) -> float:
        """The upper bound of the speed."""
        return self.images / self.seconds


def reduce_seconds(kind: Kind, bytes: float, devices: int) -> float:
    """Return the least time in which devices can add up an array that each of them holds.

    A ring of n devices sends 2 (n - 1) / n of the array over each connection (Patarasuk and Yuan
    2009, doi:10.1016/j.jpdc.2008.09.002). Connected devices reduce first, so that each of them
    holds a part, which goes over the network. The time in which a message starts is not counted.

    Args:
        kind: of the devices.
        bytes: of the array.
        devices: their number, at least 1.
    """
    inside = min(devices, kind.linked)
    outside = math.ceil(devices / kind.linked)
    seconds = 2 * (inside - 1) / inside * bytes / kind.link
    return seconds + 2 * (outside - 1) / outside * (bytes / inside) / kind.network


def row(kind: Kind, devices: int, images: int, alone: float, bytes: float) -> Row:
    """Return the bounds for a number of devices.

    Args:
        kind: of the devices.
        devices: their number.
        images: of a step, on all devices.
        alone: seconds of a step on one device.
        bytes: that the devices add up.
    """
    reduced = reduce_seconds(kind, bytes, devices)
    return Row(devices, images, reduced, max(alone, reduced), alone + reduced)
