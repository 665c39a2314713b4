"""Published weights from a server on this machine: what is fetched, kept, and said when it goes wrong."""

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
from fcn_jax.convert import download
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
    """Answers the requests in turn, the last answer for all that follow; notes the `Range` that each asked for."""

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
def fails(cache: Path) -> Callable[..., str]:
    """The message of a fetch that must fail and must leave nothing behind."""

    def check(weights: Weights) -> str:
        with pytest.raises(WeightsError) as caught:
            download.fetch(weights, sleep=lambda seconds: None)
        assert not list(cache.iterdir())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return check


def test_a_file_is_fetched_once_and_verified(server: Server, cache: Path) -> None:
    path = download.fetch(Weights(server.url, DIGEST[:8]))
    assert path == cache / f"net a-{DIGEST[:8]}.pth"
    assert path.read_bytes() == BODY
    assert path.stat().st_mode & 0o444 == 0o444
    assert download.fetch(Weights(server.url, DIGEST.upper())) == path
    assert server.ranges == [None], "the second call must not ask the server"
    assert list(cache.iterdir()) == [path]


def test_a_name_that_has_the_hash_is_kept() -> None:
    assert (
        download.cached_path(Weights("https://example.org/net-f37072fd.pth", "f37072fd")).name
        == "net-f37072fd.pth"
    )


def test_a_damaged_file_in_the_cache_is_fetched_again(server: Server, cache: Path) -> None:
    path = download.fetch(Weights(server.url, DIGEST[:8]))
    path.write_bytes(BODY[:-1])
    assert download.fetch(Weights(server.url, DIGEST[:8])).read_bytes() == BODY
    assert len(server.ranges) == 2


def test_a_transfer_that_breaks_off_goes_on_where_it_was(server: Server, cache: Path) -> None:
    server.answers = [half, status(503), rest]
    waits: list[float] = []
    assert download.fetch(Weights(server.url, DIGEST[:8]), sleep=waits.append).read_bytes() == BODY
    assert server.ranges == [None, *[f"bytes={len(BODY) // 2}-"] * 2]
    assert waits == [1, 2]


def test_a_server_that_cannot_go_on_starts_again(server: Server, cache: Path) -> None:
    server.answers = [half, whole]
    assert (
        download.fetch(Weights(server.url, DIGEST[:8]), sleep=lambda seconds: None).read_bytes()
        == BODY
    )


def test_a_transfer_that_always_breaks_off_is_given_up(
    server: Server, fails: Callable[..., str]
) -> None:
    server.answers = [half]
    message = fails(Weights(server.url, DIGEST[:8]))
    assert f"the connection ended after {len(BODY) // 2} of {len(BODY)} bytes" in message
    assert len(server.ranges) == 3


def test_another_hash_is_an_error_that_names_both(
    server: Server, fails: Callable[..., str]
) -> None:
    message = fails(Weights(server.url, "01234567"))
    assert f"begins with {DIGEST[:8]}, expected is 01234567" in message
    assert server.url in message


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (500, 3)])
def test_an_error_of_the_server_is_told_with_its_number(
    server: Server, fails: Callable[..., str], code: int, requests: int
) -> None:
    server.answers = [status(code)]
    message = fails(Weights(server.url, DIGEST[:8]))
    assert server.url in message
    assert f"HTTP {code}" in message
    assert len(server.ranges) == requests


def test_without_a_connection_the_message_says_where_to_put_the_file(
    fails: Callable[..., str], cache: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/net.pth"
        message = fails(Weights(url, DIGEST[:8]))
    assert url in message
    assert "refused" in message
    assert f"put it at {cache / f'net-{DIGEST[:8]}.pth'}" in message
    (cache / f"net-{DIGEST[:8]}.pth").write_bytes(b"another")
    with pytest.raises(WeightsError, match="what is there has SHA-256"):
        download.fetch(Weights(url, DIGEST[:8]))
    (cache / f"net-{DIGEST[:8]}.pth").write_bytes(BODY)
    assert download.fetch(Weights(url, DIGEST[:8])).read_bytes() == BODY


def test_a_cache_that_cannot_be_written_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(WriteError, match=r"file.*cannot be written"):
        download.fetch(Weights(server.url, DIGEST[:8]))


@pytest.mark.parametrize("digits", ["", "f37072f", "nothexdigits"])
def test_weights_must_be_registered_with_a_hash(digits: str) -> None:
    with pytest.raises(PluginError, match="8 to 64 hex digits"):
        download.fetch(Weights("http://127.0.0.1/net.pth", digits))


def test_a_bar_is_drawn_on_a_terminal_only(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = download.fetch(Weights(server.url, DIGEST[:8]))
    assert capsys.readouterr() == ("", "")
    path.unlink()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download.fetch(Weights(server.url, DIGEST[:8]))
    shown = capsys.readouterr()
    assert "net a" in shown.err
    assert shown.out == ""
