"""Values in the key-value store; tests/test_hosts.py uses that of real processes."""

from __future__ import annotations

import pytest

from fcn_jax.runtime import key_value


class Store:
    """The store of JAX's coordinator, without the network and its waits."""

    def __init__(self) -> None:
        self.values = dict[str, bytes]()

    def key_value_set_bytes(self, key: str, value: bytes) -> None:
        assert len(value) < 4 << 20, "gRPC refuses the message"
        self.values[key] = value

    def blocking_key_value_get_bytes(self, key: str, milliseconds: int) -> bytes:
        if key not in self.values:
            raise RuntimeError(f"DEADLINE_EXCEEDED: {key} after {milliseconds} ms\nmore")
        return self.values[key]


def never() -> None:
    pytest.fail("waited")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, 5_000_000])
def test_a_value_of_any_size_comes_back(size: int) -> None:
    store, value = Store(), bytes(range(251)) * (size // 251 + 1)
    key_value.put(store, "a", value[:size])
    assert key_value.get(store, "a", never) == value[:size]


def test_waits_until_the_value_is_there() -> None:
    store, waits = Store(), list[int]()

    def check() -> None:
        waits.append(len(waits))
        if len(waits) == 3:
            key_value.put(store, "a", b"value")

    assert key_value.get(store, "a", check) == b"value"
    assert waits == [0, 1, 2]


def test_the_check_ends_the_wait() -> None:
    def check() -> None:
        raise KeyError("process 1 failed")

    with pytest.raises(KeyError, match="process 1 failed"):
        key_value.get(Store(), "a", check)


def test_an_unreachable_coordinator_is_named_in_one_line() -> None:
    class Gone(Store):
        def blocking_key_value_get_bytes(self, key: str, milliseconds: int) -> bytes:
            raise RuntimeError("UNAVAILABLE: connection refused\nmore")

    with pytest.raises(ConnectionError, match=r"^UNAVAILABLE: connection refused$"):
        key_value.get(Gone(), "a", never)
