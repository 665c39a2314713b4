"""Several processes that compute together, each with its own devices (`jax.distributed`).

Each function also works in a single process, where it does nothing or returns its own value.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fcn_jax.errors import ConfigError, FcnJaxError, TrainingError, listing
from fcn_jax.runtime import cluster, key_value, process, versions
from fcn_jax.runtime.channel import Channel, Message, differences, meet

if TYPE_CHECKING:
    import numpy as np

HEARTBEAT_SECONDS = 60
"""JAX ends the other processes if one sends no heartbeat for this long: its machine is gone."""

GRACE_SECONDS = 10
"""Seconds after which a process is ended whose main thread still runs when another one failed."""

_COLLECTIVES = "jax_cpu_collectives_implementation"


class PeerError(TrainingError):
    """Another process failed."""


class PeerStopped(BaseException):
    """Another process stopped while there was nothing to save.

    Attributes:
        signal: the signal that it received.
    """

    def __init__(self, number: signal.Signals) -> None:
        """Take the signal."""
        super().__init__(number.name)
        self.signal = number


class _Job:
    """What this process knows of the others."""

    def __init__(self, channel: Channel, index: int, count: int) -> None:
        self.channel, self.index, self.count = channel, index, count
        self.failure: str | None = None
        self.errors = dict[int, str]()
        self.left: signal.Signals | None = None
        self.on_stop: Callable[[signal.Signals], None] | None = None
        channel.start(self._receive)

    def _receive(self, message: Message) -> None:
        """Runs in the channel's thread."""
        if number := message.get("stop") or message.get("left"):
            if "left" in message:
                self.left = signal.Signals(number)
            if self.on_stop is not None:
                self.on_stop(signal.Signals(number))
            return
        if "failed" in message:
            self.errors[message["from"]] = message["failed"]
        if self.failure is None and self.left is None:
            who = f"process {message.get('lost', message['from'])}"
            lost = f"{who} was killed or lost its connection"
            self.failure = lost if "lost" in message else f"{who} failed: {message['failed']}"
            if message.get("lost") == 0:
                self._end()  # JAX aborts this process now, because its service is gone
            threading.Thread(target=self._end_late, name="end", daemon=True).start()

    def _end_late(self) -> None:
        """End this process if its main thread waits for a device that waits for the failed one."""
        time.sleep(GRACE_SECONDS)
        self._end()

    def _end(self) -> None:
        print(f"fcn-jax: error: process {self.index} ends: {self.failure}", file=sys.stderr)
        process.end_now(1)


_job: _Job | None = None
_names = itertools.count()


def index() -> int:
    """Return the number of this process, from 0."""
    if _job is not None:
        return _job.index
    jax = sys.modules.get("jax")
    return jax.process_index() if jax is not None and jax.distributed.is_initialized() else 0


def count() -> int:
    """Return the number of processes."""
    if _job is not None:
        return _job.count
    jax = sys.modules.get("jax")
    return jax.process_count() if jax is not None and jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes files and prints."""
    return index() == 0


# ---------------------------------------------------------------------------------- begin and end


def join(
    coordinator: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
    *,
    seconds: float = 300,
) -> None:
    """Join the other processes of the job, if there are any. Call it before JAX computes anything.

    Without arguments, JAX detects SLURM, Open MPI, Kubernetes and Cloud TPUs. A process that none
    of them started, or that is the only one, stays alone.

    Args:
        coordinator: HOST:PORT of process 0.
        process_id: number of this process, 0 to `num_processes` - 1.
        num_processes: number of processes; 1 also turns the detection off.
        seconds: time limit until all processes are connected.

    Raises:
        ConfigError: arguments are missing or out of range, the port is in use, a process is missing
            at the time limit, two have one number, or their software differs.
    """
    global _job
    names = "--coordinator", "--process-id", "--num-processes"
    given = dict(zip(names, (coordinator, process_id, num_processes), strict=True))
    if _job is not None:
        raise ConfigError("this process has joined a job already")
    if given == {**dict.fromkeys(given), "--num-processes": 1}:
        return
    local = None
    if any(value is not None for value in given.values()):
        address, number, size = cluster.checked(given)
    else:
        found = cluster.detected(seconds)
        if found is None:
            return
        address, size, number, local = found
    if size == 1:
        return
    import jax

    packages = versions.package_versions()
    channel = meet(address, number, size, {"versions": packages}, seconds)
    # JAX's own handler of SIGTERM would compete with `fcn_jax.train.signals`.
    jax.config.update("jax_enable_preemption_service", False)
    if getattr(jax.config, _COLLECTIVES) is None:
        jax.config.update(_COLLECTIVES, "gloo")
    try:
        jax.distributed.initialize(
            address,
            size,
            number,
            local_device_ids=local,
            cluster_detection_method="deactivate",
            initialization_timeout=max(int(seconds), 1),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:
        raise ConfigError(
            f"--coordinator {address}: JAX cannot start with {size} processes "
            f"({str(error).splitlines()[0]})"
        ) from error
    _job = _Job(channel, number, size)
    if jax.default_backend() == "cpu":
        _connect_quietly()


def _connect_quietly() -> None:
    """Let gloo connect the CPUs, of which it writes a line to the standard output."""
    from jax.experimental import multihost_utils

    sys.stdout.flush()
    output, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        multihost_utils.sync_global_devices("fcn_jax")
    finally:
        os.dup2(output, 1)
        os.close(output)
        os.close(nowhere)


def fail(error: BaseException) -> None:
    """Tell the other processes that this one ends with an error."""
    if _job is not None and not isinstance(error, PeerError):
        _job.channel.send({"failed": _line(error)})


def name() -> str:
    """Return the beginning of a message of this process: empty if it is the only one."""
    return f"process {_job.index}: " if _job is not None else ""


def is_known(error: BaseException) -> bool:
    """Whether a process with a lower number has the same error, and prints it."""
    until = time.monotonic() + 1
    while _job is not None and _job.index and time.monotonic() < until:
        if any(
            number < _job.index and text == _line(error) for number, text in _job.errors.items()
        ):
            return True
        time.sleep(0.02)
    return False


def leave(status: int, *, failed: bool) -> None:
    """Leave the job at the end of the program.

    Args:
        status: exit status.
        failed: this process or another one failed. Then no process waits for others, and this one
            ends here.
    """
    global _job
    job, _job = _job, None
    if job is None:
        return
    if failed:
        if sys.exc_info()[1] is not None:  # an unexpected error, which Python would print later
            traceback.print_exc()
        if job.index == 0:  # JAX ends the others at once when process 0 is gone
            job.channel.wait_closed(GRACE_SECONDS + 2)
        process.end_now(status)
    import jax

    job.channel.send({"bye": True})
    jax.distributed.shutdown()


def _line(error: BaseException) -> str:
    """Return an error's message in one line."""
    text = " ".join(str(error).split())[:2000]
    return text if isinstance(error, FcnJaxError) else f"{type(error).__name__}: {text}"


# -------------------------------------------------------------------------- stop requests, failures


@contextlib.contextmanager
def sharing_stops(receive: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Within it, call `receive`, in another thread, when another process has received a signal."""
    if _job is not None:
        _job.on_stop = receive
    try:
        yield
    finally:
        if _job is not None:
            _job.on_stop = None


def announce_stop(number: signal.Signals, leaving: bool) -> None:
    """Tell the others that this process received a signal, or ends with nothing to save."""
    if _job is not None:
        _job.channel.send({"left" if leaving else "stop": int(number)})


def cause(error: BaseException) -> BaseException:
    """Return the failure of another process if it caused an error of this one, else the error.

    A collective operation fails if a process is gone. The reason arrives a moment later.
    """
    if _job is None or isinstance(error, FcnJaxError | KeyboardInterrupt | MemoryError):
        return error
    until = time.monotonic() + 3
    while _job.failure is None and time.monotonic() < until:
        time.sleep(0.05)
    return error if _job.failure is None else PeerError(_job.failure)


def has_failed() -> bool:
    """Whether another process is known to have failed."""
    return _job is not None and _job.failure is not None


# ---------------------------------------------------------------------------------- shared values


def gather(value: bytes) -> list[bytes] | None:
    """Send a value to process 0, which returns those of all processes in their order.

    All processes must call this module's functions for shared values in the same order. They wait
    for one another for any time, because each may be busy; a process that is gone is an error.
    """
    client, key = _client(), f"fcn_jax/{next(_names)}"
    if client is None:
        return [value]
    if index():
        key_value.put(client, f"{key}/{index()}", value)
        return None
    others = []
    for number in range(1, count()):
        others.append(_get(client, f"{key}/{number}"))
        client.key_value_delete(f"{key}/{number}")
    return [value, *others]


def broadcast(value: bytes | None) -> bytes:
    """Return the value of process 0 in all processes."""
    client, key = _client(), f"fcn_jax/{next(_names)}"
    if index() == 0:
        assert value is not None
        if client is not None:
            key_value.put(client, key, value)
        return value
    return _get(client, key)


def exchange(value: Any) -> list[Any]:
    """Return the JSON-able values of all processes, in their order. They must be short."""
    found = gather(json.dumps(value).encode())
    together = None if found is None else b"[" + b",".join(found) + b"]"
    return list(json.loads(broadcast(together)))


def add_up(arrays: Sequence[np.ndarray]) -> None:
    """Add the values of i64 arrays over all processes, in place."""
    import numpy as np  # not at the top: `fcn-jax --help` does not need it

    found = gather(np.concatenate([array.ravel() for array in arrays]).tobytes())
    total = None
    if found is not None:
        total = np.sum([np.frombuffer(one, np.int64) for one in found], axis=0).tobytes()
    flat, start = np.frombuffer(broadcast(total), np.int64), 0
    for array in arrays:
        array[...] = flat[start : start + array.size].reshape(array.shape)
        start += array.size


def wait_for_all() -> None:
    """Wait until all processes are here."""
    exchange(None)


def first_decides(decide: Callable[[], Any]) -> Any:
    """Call a function in process 0, and return its JSON-able result in all processes."""
    return json.loads(broadcast(json.dumps(decide()).encode() if is_first() else None))


def require_same(what: Mapping[str, Any]) -> None:
    """Check that JSON-able values, by name, are the same in all processes.

    Raises:
        ConfigError: otherwise; it names the first process that differs from process 0, and where.
    """
    mine = json.loads(json.dumps(dict(what)))
    found = gather(json.dumps(mine).encode())
    fault = ""
    for number, other in enumerate(found or ()):
        if not fault and (names := differences(mine, json.loads(other))):
            fault = (
                f"process {number} differs from process 0: {listing(names)}; start all processes "
                "with the same arguments, recipe and data"
            )
    if fault := broadcast(fault.encode() if found else None).decode():
        raise ConfigError(fault)


def _client() -> Any:
    if count() == 1:
        return None
    from jax._src import distributed

    return distributed.global_state.client


def _get(client: Any, key: str) -> bytes:
    try:
        return key_value.get(client, key, _require_others)
    except ConnectionError as error:
        raise PeerError(f"process 0 cannot be reached ({error})") from error


def _require_others() -> None:
    """Raise an exception if another process failed, or left with nothing to save."""
    if _job is not None and _job.failure is not None:
        raise PeerError(_job.failure)
    if _job is not None and _job.left is not None:
        raise PeerStopped(_job.left)
