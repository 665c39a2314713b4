"""Connections between the processes of a job, here between threads."""

from __future__ import annotations

import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from fcn_jax.errors import ConfigError
from fcn_jax.runtime.channel import Channel, differences, meet
from fcn_jax.runtime.launch import free_port


def start(*hellos: tuple[int, int, dict[str, object]], seconds: float = 5) -> list[Future[Channel]]:
    """Let processes meet: (number, number of processes, facts) of each."""
    address = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(len(hellos)) as pool:
        return [pool.submit(meet, address, *hello, seconds) for hello in hellos]


def listen(channel: Channel) -> list[dict[str, object]]:
    received: list[dict[str, object]] = []
    channel.start(received.append)
    return received


def wait_for(received: list[dict[str, object]], count: int) -> None:
    until = time.monotonic() + 5
    while len(received) < count:
        assert time.monotonic() < until, received
        time.sleep(0.01)


def close(channel: Channel) -> None:
    """End a process as the system does."""
    for peer in channel._peers.values():
        peer.shutdown(socket.SHUT_RDWR)


def test_passes_messages_to_all_others_and_reports_a_lost_process() -> None:
    channels = [future.result() for future in start((0, 3, {}), (1, 3, {}), (2, 3, {}))]
    received = [listen(channel) for channel in channels]
    channels[1].send({"stop": 15})
    for number in (0, 2):
        wait_for(received[number], 1)
        assert received[number] == [{"from": 1, "stop": 15}]
    channels[0].send({"failed": "no memory"})
    wait_for(received[1], 1)
    wait_for(received[2], 2)
    assert received[1] == [{"from": 0, "failed": "no memory"}]
    close(channels[2])
    wait_for(received[0], 2)
    wait_for(received[1], 2)
    assert received[0][-1] == received[1][-1] == {"from": 2, "lost": 2}
    close(channels[1])
    channels[0].wait_closed(5)
    wait_for(received[0], 3)
    for channel in channels:
        for peer in channel._peers.values():
            peer.close()


def test_a_process_that_said_goodbye_is_not_lost() -> None:
    first, second = [future.result() for future in start((0, 2, {}), (1, 2, {}))]
    received = listen(first)
    second.send({"bye": True})
    close(second)
    first.wait_closed(5)
    assert received == []
    close(first)


FACTS = {"versions": {"jax": "1.0", "flax": "2.0"}}


@pytest.mark.parametrize(
    ("hellos", "message"),
    [
        (
            [(0, 2, {}), (1, 3, {})],
            "process 1 was started as one of 3, and process 0 as one of 2; start all with the same "
            "--num-processes",
        ),
        (
            [(0, 3, {}), (1, 3, {}), (1, 3, {})],
            "two processes have the number 1; give each its own --process-id, 0 to 2",
        ),
        (
            [(0, 2, FACTS), (1, 2, {"versions": {"jax": "1.1", "flax": "2.0"}})],
            "process 1 differs from process 0: versions.jax (1.1, here 1.0); install the same "
            "versions everywhere, and start all with the same arguments",
        ),
    ],
)
def test_names_the_process_that_does_not_fit_in_all_processes(hellos, message) -> None:
    for future in start(*hellos):
        with pytest.raises(ConfigError) as error:
            future.result()
        assert str(error.value) == message


def test_rejects_a_port_that_is_in_use() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on port {port} .*choose"):
            meet(f"127.0.0.1:{port}", 0, 2, {}, 5)


def test_names_missing_processes_at_the_time_limit() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=r"process 1, 2 of 3 did not connect .* within 0\.2 s"):
        meet(address, 0, 3, {}, 0.2)
    with pytest.raises(ConfigError, match=r"process 1 did not reach process 0 .* 0\.3 s .*refus"):
        meet(address, 1, 3, {}, 0.3)


def test_ignores_connections_of_other_programs() -> None:
    port = free_port()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, f"127.0.0.1:{port}", 0, 2, {}, 5)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            try:
                with socket.create_connection(("127.0.0.1", port)) as other:
                    other.sendall(b"GET / HTTP/1.0\r\n\r\n")
                break
            except OSError:
                time.sleep(0.01)
        second = pool.submit(meet, f"127.0.0.1:{port}", 1, 2, {}, 5)
        for channel in (first.result(), second.result()):
            close(channel)


def test_names_differences_in_nested_tables() -> None:
    mine = {"recipe": {"optim": {"lr": 0.1}, "train": {"seed": 0}}, "step": 3}
    other = {"recipe": {"optim": {"lr": 0.2}, "train": {"seed": 0}}, "step": None}
    assert differences(mine, other) == ["recipe.optim.lr (0.2, here 0.1)", "step (None, here 3)"]
    assert differences(mine, mine) == []
