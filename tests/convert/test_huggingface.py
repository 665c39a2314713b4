"""Files of the Hugging Face hub from a local server: hashes, tokens, licenses, error messages."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fcn_jax.api import Weights
from fcn_jax.cli import main
from fcn_jax.convert import hub, huggingface, licenses
from fcn_jax.errors import WeightsError

BODY = bytes(range(256)) * 100
DIGEST = hashlib.sha256(BODY).hexdigest()
WEIGHTS = Weights.huggingface("acme/net.a1_in1k", "", license="apache-2.0")
FILE = "/acme/net.a1_in1k/resolve/main/model.safetensors"


class Hub:
    """The hub's answer to a request for a file, a redirect with the hash, and its storage."""

    def __init__(self):
        self.requests, self.digest, self.status = [], DIGEST, 0

    def answer(self, handler):
        path, token = handler.path, handler.headers["Authorization"]
        self.requests.append((handler.command, path, token))
        if self.status:
            handler.send_error(self.status)
        elif path.startswith("/renamed/"):
            handler.send_response(307)
            handler.send_header("Location", path.replace("renamed", "acme"))
        elif path.startswith("/storage/"):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(BODY)))
        else:
            handler.send_response(302)
            handler.send_header("Location", "/storage/0123")
            handler.send_header("X-Linked-Etag", f'"{self.digest}"')
        if not self.status:
            handler.end_headers()
        if handler.command == "GET" and path.startswith("/storage/"):
            handler.wfile.write(BODY)


@pytest.fixture
def server(monkeypatch, tmp_path):
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found.answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{http.server_port}/")
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", licenses.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    yield found
    http.shutdown()
    thread.join()
    http.server_close()


def test_fetches_a_file_once_and_verifies_the_published_hash(server, tmp_path):
    path = hub.fetch(WEIGHTS)
    assert path == tmp_path / "cache" / f"acme--net.a1_in1k-{DIGEST[:8]}.safetensors"
    assert path.read_bytes() == BODY
    assert [request[:2] for request in server.requests] == [
        ("HEAD", FILE),
        ("GET", FILE),
        ("GET", "/storage/0123"),
    ]
    assert hub.fetch(WEIGHTS) == path
    assert len(server.requests) == 3, "the second call must not ask the server"


def test_a_damaged_copy_is_fetched_again(server):
    path = hub.fetch(WEIGHTS)
    path.write_bytes(BODY[1:])
    assert hub.fetch(WEIGHTS).read_bytes() == BODY


def test_another_hash_than_the_published_one_is_an_error(server, tmp_path):
    server.digest = "0" * 64
    with pytest.raises(WeightsError, match=f"SHA-256 begins with {DIGEST}, expected is 000"):
        hub.fetch(WEIGHTS)
    assert not list((tmp_path / "cache").iterdir())


def test_a_renamed_repository_is_followed(server):
    renamed = Weights.huggingface("renamed/net.a1_in1k", "", license="mit")
    assert hub.fetch(renamed).read_bytes() == BODY


def test_the_token_is_sent_to_the_hub_and_not_after_a_redirect(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.fetch(WEIGHTS)
    assert [request[2] for request in server.requests] == ["Bearer secret", "Bearer secret", None]


@pytest.mark.parametrize(
    ("status", "complaint"),
    [
        (
            401,
            r"HTTP 401: .*gated: accept its license at http\S+/acme/net.a1_in1k and set HF_TOKEN",
        ),
        (404, "HTTP 404: .*/acme/net.a1_in1k has no such file; download it in another way"),
        (503, "HTTP 503"),
    ],
)
def test_errors_of_the_server_say_what_to_do(server, status, complaint):
    server.status = status
    with pytest.raises(WeightsError, match=complaint):
        hub.fetch(WEIGHTS)


def test_without_a_connection_the_error_names_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=f"127.0.0.1:9{FILE}: cannot be fetched: .*refused"):
        hub.fetch(WEIGHTS)


def test_a_file_without_published_hash_is_refused(server):
    server.digest = "abc"
    with pytest.raises(WeightsError, match="does not publish its SHA-256"):
        hub.fetch(WEIGHTS)


def test_a_restricted_license_must_be_accepted(server, monkeypatch):
    weights = Weights.huggingface(
        "acme/net.a1_in1k", "", license="cc-by-nc-4.0", restricted="no commercial use"
    )
    with pytest.raises(WeightsError, match=r"license cc-by-nc-4\.0: no commercial use; .*--accept"):
        hub.fetch(weights)
    monkeypatch.setenv(licenses.VARIABLE, "mit")
    with pytest.raises(WeightsError, match="no commercial use"):
        hub.fetch(weights)
    assert not server.requests
    licenses.accept("CC-BY-NC-4.0")
    assert hub.fetch(weights).read_bytes() == BODY


def test_the_command_line_accepts_a_license(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(licenses.VARIABLE, "mit")
    missing = str(tmp_path / "no.pth")
    arguments = ["convert", missing, "--model", "resnet18", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--accept-license", "cc-by-nc-4.0"]) == 2
    assert "no such weights" in capsys.readouterr().err
    assert licenses.os.environ[licenses.VARIABLE] == "mit,cc-by-nc-4.0"


def test_addresses():
    assert huggingface.repository("hf://a/b.c/d/e.safetensors") == "a/b.c"
    assert huggingface.address("https://example.org/x.pth") == "https://example.org/x.pth"
