"""A local server that speaks as much of the Hugging Face Hub's protocol as huggingface_hub needs.

It keeps repositories in memory: models can be listed, downloaded, created and committed to. Its
answers follow https://huggingface.co/docs/hub/api.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SHA = "a" * 40


@dataclasses.dataclass
class Hub:
    """The repositories of the server.

    Attributes:
        url: its address.
        files: contents by repository and file name.
        gated: repositories whose files may not be downloaded.
        requests: method and path of each request.
        tokens: the tokens that may write.
    """

    url: str = ""
    files: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    gated: set[str] = dataclasses.field(default_factory=set)
    requests: list[str] = dataclasses.field(default_factory=list)
    tokens: set[str] = dataclasses.field(default_factory=lambda: {"hf_test"})
    private: dict[str, bool] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Run a server on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"POST {path}")
            if path == "/api/validate-yaml":
                return self._json({"errors": [], "warnings": []})
            if self.headers.get("Authorization", "").removeprefix("Bearer ") not in hub.tokens:
                return self._error(401, "", "Invalid credentials")
            if path == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                if repo in hub.files:
                    return self._error(409, "", "You already created this model repo")
                hub.files[repo] = {}
                hub.private[repo] = asked.get("visibility") == "private" or bool(
                    asked.get("private")
                )
                return self._json({"url": f"{hub.url}/{repo}", "name": repo, "id": SHA})
            repo = "/".join(path.split("/")[3:5])
            if "/preupload/" in path:
                names = [file["path"] for file in json.loads(body)["files"]]
                found = [
                    {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
                ]
                return self._json({"files": found})
            if "/commit/" in path:
                for line in body.decode().splitlines():
                    item = json.loads(line)
                    if item["key"] == "file":
                        value = item["value"]
                        hub.files[repo][value["path"]] = base64.b64decode(value["content"])
                url = f"{hub.url}/{repo}/commit/{SHA}"
                return self._json({"commitUrl": url, "commitOid": SHA, "success": True})
            return self._error(404, "", f"unknown {path}")

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if path.startswith("/api/models/"):
                repo, _, rest = path.removeprefix("/api/models/").partition("/revision/")
                if "/tree/" in path:
                    repo, _, rest = path.removeprefix("/api/models/").partition("/tree/")
                return self._info(repo, rest, tree="/tree/" in path)
            repo, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            if repo not in hub.files:
                return self._error(404, "RepoNotFound", "Repository not found")
            if revision not in ("main", SHA):
                return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if repo in hub.gated:
                return self._error(403, "GatedRepo", f"Access to model {repo} is restricted")
            if name not in hub.files[repo]:
                return self._error(404, "EntryNotFound", "Entry not found")
            content = hub.files[repo][name]
            digest = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
            return self._send(200, content, headers)

        def _info(self, repo: str, revision: str, *, tree: bool) -> None:
            if repo not in hub.files:
                return self._error(401, "RepoNotFound", "Repository not found")
            if revision not in ("", "main", SHA):
                return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            files = hub.files[repo]
            if tree:
                return self._json(
                    [
                        {"type": "file", "path": name, "size": len(body), "oid": SHA}
                        for name, body in files.items()
                    ]
                )
            siblings = [{"rfilename": name} for name in files]
            return self._json(
                {"id": repo, "modelId": repo, "sha": SHA, "siblings": siblings, "private": False}
            )

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _error(self, code: int, kind: str, message: str) -> None:
            headers = {"X-Error-Message": message} | ({"X-Error-Code": kind} if kind else {})
            self._send(code, json.dumps({"error": message}).encode(), headers)

        def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
