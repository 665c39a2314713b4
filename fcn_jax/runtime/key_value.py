"""Values of any size in the key-value store of JAX's coordinator.

`client` is that of `jax.distributed` (`jax._src.distributed.global_state.client`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_PART = 1 << 20


def put(client: Any, key: str, value: bytes) -> None:
    """Store a value in parts, because a message of gRPC has at most 4 MiB."""
    parts = [value[start : start + _PART] for start in range(0, len(value), _PART)]
    for number, part in enumerate(parts):
        client.key_value_set_bytes(f"{key}/part{number}", part)
    client.key_value_set_bytes(f"{key}/parts", str(len(parts)).encode())


def get(client: Any, key: str, check: Callable[[], None]) -> bytes:
    """Wait for a value and return it.

    Args:
        client: see above.
        key: as for `put`.
        check: called about twice a second while the value is missing. What it raises ends the wait.

    Raises:
        ConnectionError: the coordinator cannot be reached. The message is JAX's, in one line.
    """
    parts = int(_wait(client, f"{key}/parts", check))
    return b"".join(_wait(client, f"{key}/part{number}", check) for number in range(parts))


def _wait(client: Any, key: str, check: Callable[[], None]) -> bytes:
    while True:
        try:
            # In slices, because Python handles signals only between calls.
            return bytes(client.blocking_key_value_get_bytes(key, 500))
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise ConnectionError(str(error).splitlines()[0]) from error
        check()  # Only now: a process may have failed after it has given its value.
