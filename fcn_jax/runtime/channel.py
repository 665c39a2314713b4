"""Connections between the processes of one job: meeting, stop requests, and failures.

Process 0 is the hub: the others connect to the coordinator's address before JAX listens there, and
these connections stay open while the job runs. When a process is killed, the system closes its
connection, so the others know at once. JAX's own service only notices missing heartbeats.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from fcn_jax.errors import ConfigError, listing

Message = dict[str, Any]

_LONGEST = 1 << 16
"""Bytes of the longest message."""


class Channel:
    """The open connections of this process: one to process 0, or from process 0 to each other."""

    def __init__(self, index: int, peers: dict[int, socket.socket]) -> None:
        """Take the connections by process."""
        self._index, self._peers = index, peers
        self._lock = threading.RLock()  # a signal handler may interrupt a send, and send
        self._left = set[int]()

    def send(self, message: Message) -> None:
        """Send a message to all other processes."""
        self._forward({"from": self._index, **message})

    def start(self, receive: Callable[[Message], None]) -> None:
        """Begin to call `receive` with each message, in a thread.

        A connection that ends without the message {"bye": ...} before counts as the message
        {"lost": process}.
        """
        threading.Thread(target=self._read, args=(receive,), name="channel", daemon=True).start()

    def wait_closed(self, seconds: float) -> None:
        """Wait until all other processes have ended, at most for this time."""
        until = time.monotonic() + seconds
        while len(self._left) < len(self._peers) and time.monotonic() < until:
            time.sleep(0.05)

    def _forward(self, message: Message) -> None:
        data = json.dumps(message).encode()[: _LONGEST - 1] + b"\n"
        with self._lock:
            for index, peer in self._peers.items():
                if index != message["from"]:
                    with contextlib.suppress(OSError):
                        peer.sendall(data)

    def _read(self, receive: Callable[[Message], None]) -> None:
        said_bye = set[int]()
        with selectors.DefaultSelector() as selector:
            for index, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, (index, _Lines(peer)))
            while len(self._left) < len(self._peers):
                for key, _ in selector.select():
                    index, lines = key.data
                    for message in lines.read():
                        if "bye" in message:
                            said_bye.add(index)
                            continue
                        if self._index == 0:
                            self._forward(message)
                        receive(message)
                    if lines.ended:
                        selector.unregister(key.fileobj)
                        self._left.add(index)
                        if index not in said_bye:
                            lost = {"from": index, "lost": index}
                            if self._index == 0:
                                self._forward(lost)
                            receive(lost)


class _Lines:
    """The messages that arrive at a socket."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer, self._rest, self.ended = peer, b"", False

    def read(self) -> Iterator[Message]:
        """Yield the messages that have arrived; waits if none has."""
        try:
            data = self._peer.recv(_LONGEST)
        except OSError:
            data = b""
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                if isinstance(message := json.loads(line), dict):
                    yield message


def meet(address: str, index: int, count: int, facts: dict[str, Any], seconds: float) -> Channel:
    """Connect all processes of a job.

    Args:
        address: HOST:PORT, which is one of process 0.
        index: number of this process, from 0 to count - 1.
        count: number of processes.
        facts: JSON-able values that must be equal in all processes.
        seconds: time limit.

    Raises:
        ConfigError: the port is in use, a process is missing at the time limit, two have one
            number, or their counts or facts differ.
    """
    host, _, port = address.rpartition(":")
    until = time.monotonic() + seconds
    hello = {"fcn_jax": 1, "index": index, "count": count, "facts": facts}
    if index:
        return Channel(index, {0: _connect(host, int(port), hello, seconds)})
    peers = dict[int, socket.socket]()
    try:
        with _listen(int(port)) as server:
            while len(peers) < count - 1:
                server.settimeout(max(until - time.monotonic(), 0.01))
                try:
                    peer, _ = server.accept()
                    peer.settimeout(5)
                    other = json.loads(_line(peer))
                    if other.get("fcn_jax") != 1:
                        raise ValueError
                except TimeoutError:
                    if time.monotonic() < until:
                        continue
                    missing = listing(str(i) for i in range(1, count) if i not in peers)
                    raise ConfigError(
                        f"process {missing} of {count} did not connect to {address} within "
                        f"{seconds:g} s; start all processes with the same --coordinator and "
                        "--num-processes, or raise --connect-timeout"
                    ) from None
                except (OSError, ValueError, AttributeError):
                    continue  # not a process of this program
                number = other.get("index")
                fault = _fault(hello, other, peers)
                peers[number if fault is None else -1] = peer
                if fault:
                    raise ConfigError(fault)
                peer.settimeout(None)
        for peer in peers.values():
            _keep_alive(peer)
            peer.sendall(_encoded({"welcome": True}))
    except ConfigError as error:
        for peer in peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(_encoded({"refused": str(error)}))
                peer.close()
        raise
    return Channel(0, peers)


def differences(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the keys of nested tables whose values differ, such as "optim.lr (0.1, here 0.2)"."""
    found = []
    for key in sorted({**mine, **other}):
        here, there = mine.get(key), other.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            found += [f"{key}.{name}" for name in differences(here, there)]
        elif here != there:
            found.append(f"{key} ({there}, here {here})")
    return found


def _fault(mine: Message, other: Message, peers: dict[int, socket.socket]) -> str | None:
    index, count = other.get("index"), other.get("count")
    if count != mine["count"]:
        return (
            f"process {index} was started as one of {count}, and process 0 as one of "
            f"{mine['count']}; start all with the same --num-processes"
        )
    if index in peers or not isinstance(index, int) or not 0 < index < count:
        return (
            f"two processes have the number {index}; give each its own --process-id, 0 to "
            f"{count - 1}"
        )
    if found := differences(mine["facts"], other.get("facts", {})):
        return (
            f"process {index} differs from process 0: {listing(found)}; install the same versions "
            "everywhere, and start all with the same arguments"
        )
    return None


def _listen(port: int) -> socket.socket:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        # Unlike gRPC, which JAX uses, this fails if another program listens there.
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
        )
    except OSError as error:
        raise ConfigError(
            f"--coordinator: process 0 cannot listen on port {port} ({error.strerror}); another "
            "program or an earlier job may use it: choose another port"
        ) from None


def _connect(host: str, port: int, hello: Message, seconds: float) -> socket.socket:
    until, problem = time.monotonic() + seconds, "no answer"
    while (left := until - time.monotonic()) > 0:
        try:
            peer = socket.create_connection((host, port), timeout=min(left, 10))
            peer.sendall(_encoded(hello))
            # Process 0 answers when all are there, at its own time limit at the latest.
            peer.settimeout(max(left, 1) + seconds)
            answer = json.loads(_line(peer))
        except (OSError, ValueError) as error:
            problem = str(error) or problem
            time.sleep(0.2)
            continue
        if refused := answer.get("refused"):
            raise ConfigError(refused)
        peer.settimeout(None)
        _keep_alive(peer)
        return peer
    raise ConfigError(
        f"--coordinator {host}:{port}: process {hello['index']} did not reach process 0 within "
        f"{seconds:g} s ({problem}); start process 0, check the address and the firewall, or raise "
        "--connect-timeout"
    )


def _keep_alive(peer: socket.socket) -> None:
    """Notice a machine that is gone, whose system closes no connection, within two minutes."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _line(peer: socket.socket) -> bytes:
    """Read one short line, and nothing after it."""
    data = b""
    while not data.endswith(b"\n") and len(data) < _LONGEST:
        part = peer.recv(1)
        if not part:
            raise OSError("the connection was closed")
        data += part
    return data


def _encoded(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"
