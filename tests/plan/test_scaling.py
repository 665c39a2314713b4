import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.plan import kinds, scaling

SIZE = 100e6


def test_ring_of_a_host():
    kind = kinds.find("H100")
    assert scaling.reduce_seconds(kind, SIZE, 1) == 0
    assert scaling.reduce_seconds(kind, SIZE, 2) == SIZE / kind.link
    assert scaling.reduce_seconds(kind, SIZE, 8) == 2 * 7 / 8 * SIZE / kind.link


def test_hosts_exchange_the_part_of_each_device():
    kind = kinds.find("H100")
    inside = scaling.reduce_seconds(kind, SIZE, 8)
    two_hosts = scaling.reduce_seconds(kind, SIZE, 16)
    assert two_hosts - inside == pytest.approx(2 * 1 / 2 * SIZE / 8 / kind.network)


def test_tpu_pod_needs_no_network():
    kind = kinds.find("TPUv6e")
    without = dataclasses.replace(kind, network=1.0)
    assert scaling.reduce_seconds(without, SIZE, 256) == scaling.reduce_seconds(kind, SIZE, 256)
    assert scaling.reduce_seconds(without, SIZE, 512) > scaling.reduce_seconds(kind, SIZE, 512)


@given(
    kind=st.sampled_from(list(kinds.KINDS.values())),
    alone=st.floats(1e-5, 10),
    size=st.floats(1e3, 1e10),
)
def test_more_devices_are_never_more_efficient(kind, alone, size):
    rows = [
        scaling.row(kind, count, 4 * count, alone, size) for count in (1, 2, 8, 16, 256, 512, 4096)
    ]
    for fewer, more in itertools.pairwise(rows):
        assert all(
            a >= b for a, b in zip(fewer.efficiency(alone), more.efficiency(alone), strict=True)
        )
        assert more.images == 4 * more.devices
    assert rows[0].efficiency(alone) == (1, 1)
    assert all(0 < low <= high <= 1 for low, high in (row.efficiency(alone) for row in rows))
