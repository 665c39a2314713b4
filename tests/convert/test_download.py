"""Downloads from a local server: retries, resumed transfers, verified hashes, error messages."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fcn_jax.api import Weights
from fcn_jax.convert import hub
from fcn_jax.errors import PluginError, WeightsError, WriteError

BODY = bytes(range(256)) * 3000
DIGEST = hashlib.sha256(BODY).hexdigest()

Answer = Callable[[BaseHTTPRequestHandler], None]


def whole(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(BODY)))
    handler.end_headers()
    handler.wfile.write(BODY)


def half(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(BODY)))
    handler.end_headers()
    handler.wfile.write(BODY[: len(BODY) // 2])


def rest(handler: BaseHTTPRequestHandler) -> None:
    start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
    handler.send_header("Content-Length", str(len(BODY) - start))
    handler.end_headers()
    handler.wfile.write(BODY[start:])


def status(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


@dataclasses.dataclass
class Server:
    """Gives the answers in turn, then repeats the last one; records the `Range` of each request."""

    url: str
    answers: list[Answer]
    ranges: list[str | None] = dataclasses.field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.ranges.append(self.headers["Range"])
            found.answers[min(len(found.ranges), len(found.answers)) - 1](self)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Server(f"http://127.0.0.1:{http.server_port}/models/net%20a.pth?download=1", [whole])
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield found
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times that downloads wait before another attempt; no time passes."""
    seconds: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def fails(cache: Path, waits: list[float]) -> Callable[..., str]:
    """Return the message of a download that must fail and leave no file."""

    def check(weights: Weights) -> str:
        with pytest.raises(WeightsError) as caught:
            hub.fetch(weights)
        assert not list(cache.iterdir())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return check


def test_downloads_a_file_once_and_verifies_it(server: Server, cache: Path) -> None:
    path = hub.fetch(Weights(server.url, DIGEST[:8]))
    assert path == cache / f"net a-{DIGEST[:8]}.pth"
    assert path.read_bytes() == BODY
    assert path.stat().st_mode & 0o444 == 0o444
    assert hub.fetch(Weights(server.url, DIGEST.upper())) == path
    assert server.ranges == [None], "the second call must not ask the server"
    assert list(cache.iterdir()) == [path]


def test_keeps_names_that_contain_the_hash() -> None:
    assert (
        hub.cached_path(Weights("https://example.org/net-f37072fd.pth", "f37072fd")).name
        == "net-f37072fd.pth"
    )


def test_downloads_a_damaged_file_again(server: Server, cache: Path) -> None:
    path = hub.fetch(Weights(server.url, DIGEST[:8]))
    path.write_bytes(BODY[:-1])
    assert hub.fetch(Weights(server.url, DIGEST[:8])).read_bytes() == BODY
    assert len(server.ranges) == 2


def test_resumes_a_broken_transfer(server: Server, cache: Path, waits: list[float]) -> None:
    server.answers = [half, status(503), rest]
    assert hub.fetch(Weights(server.url, DIGEST[:8])).read_bytes() == BODY
    assert server.ranges == [None, *[f"bytes={len(BODY) // 2}-"] * 2]
    assert waits == [1, 2]


def test_restarts_if_the_server_cannot_resume(
    server: Server, cache: Path, waits: list[float]
) -> None:
    server.answers = [half, whole]
    assert hub.fetch(Weights(server.url, DIGEST[:8])).read_bytes() == BODY
    assert waits == [1]


def test_gives_up_after_three_attempts(server: Server, fails: Callable[..., str]) -> None:
    server.answers = [half]
    message = fails(Weights(server.url, DIGEST[:8]))
    assert f"the connection ended after {len(BODY) // 2} of {len(BODY)} bytes" in message
    assert len(server.ranges) == 3


def test_rejects_a_wrong_hash_and_names_both(server: Server, fails: Callable[..., str]) -> None:
    message = fails(Weights(server.url, "01234567"))
    assert f"begins with {DIGEST[:8]}, expected is 01234567" in message
    assert server.url in message


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (500, 3)])
def test_reports_the_servers_status_code(
    server: Server, fails: Callable[..., str], code: int, requests: int
) -> None:
    server.answers = [status(code)]
    message = fails(Weights(server.url, DIGEST[:8]))
    assert server.url in message
    assert f"HTTP {code}" in message
    assert len(server.ranges) == requests


def test_offline_error_names_the_place_for_the_file(fails: Callable[..., str], cache: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/net.pth"
        message = fails(Weights(url, DIGEST[:8]))
    assert url in message
    assert "refused" in message
    assert f"put it at {cache / f'net-{DIGEST[:8]}.pth'}" in message
    (cache / f"net-{DIGEST[:8]}.pth").write_bytes(b"another")
    with pytest.raises(WeightsError, match="the file there has SHA-256"):
        hub.fetch(Weights(url, DIGEST[:8]))
    (cache / f"net-{DIGEST[:8]}.pth").write_bytes(BODY)
    assert hub.fetch(Weights(url, DIGEST[:8])).read_bytes() == BODY


def test_names_a_cache_that_cannot_be_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(WriteError, match=r"file.*cannot be written"):
        hub.fetch(Weights(server.url, DIGEST[:8]))


@pytest.mark.parametrize("digits", ["", "f37072f", "nothexdigits"])
def test_rejects_weights_without_a_hash(digits: str) -> None:
    with pytest.raises(PluginError, match="8 to 64 hex digits"):
        hub.fetch(Weights("http://127.0.0.1/net.pth", digits))


def test_shows_progress_on_a_terminal_only(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hub.fetch(Weights(server.url, DIGEST[:8]))
    assert capsys.readouterr() == ("", "")
    path.unlink()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    hub.fetch(Weights(server.url, DIGEST[:8]))
    shown = capsys.readouterr()
    assert "net a" in shown.err
    assert shown.out == ""
