"""Files of the Hugging Face hub: addresses, hashes, and tokens.

A file has the address hf://OWNER/NAME/FILE. `HF_ENDPOINT` is the address of another server, and
`HF_TOKEN` is sent to it, as by the package `huggingface_hub`.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SCHEME = "hf://"
_HASH = "X-Linked-Etag"
_TIMEOUT = 30.0  # seconds


def repository(url: str) -> str:
    """The repository OWNER/NAME of an hf:// address."""
    return "/".join(url.removeprefix(SCHEME).split("/")[:2])


def address(url: str) -> str:
    """The https address of an hf:// address; another one unchanged."""
    if not url.startswith(SCHEME):
        return url
    file = url.removeprefix(f"{SCHEME}{repository(url)}/")
    return f"{_endpoint()}/{repository(url)}/resolve/main/{file}"


def authorize(request: urllib.request.Request) -> None:
    """Add the token to a request to the hub. Redirects to other servers do not get it."""
    token = os.environ.get("HF_TOKEN")
    if token and request.full_url.startswith(f"{_endpoint()}/"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")


def file_name(url: str) -> str:
    """The name in the cache of the file of an hf:// address, without its hash."""
    return repository(url).replace("/", "--") + Path(url).suffix


def cached_hash(folder: Path, url: str) -> str:
    """The leading digits of a file's hash in the names of its copies in the cache; "" if none."""
    name = Path(file_name(url))
    found = sorted(folder.glob(f"{name.stem}-{'[0-9a-f]' * 8}{name.suffix}"))
    return found[-1].stem[-8:] if found else ""


def published_hash(url: str) -> str:
    """The SHA-256 that the hub publishes for a file; "" if it publishes none.

    Raises:
        OSError: there is no connection, or the server answers with an error.
    """
    request = urllib.request.Request(address(url), headers={"User-Agent": "fcn-jax"}, method="HEAD")
    authorize(request)
    try:
        with urllib.request.build_opener(_UntilHash).open(request, timeout=_TIMEOUT) as response:
            headers = response.headers
    except urllib.error.HTTPError as error:
        if not error.headers.get(_HASH):
            raise
        headers = error.headers
    found = (headers.get(_HASH) or headers.get("ETag") or "").strip('"').lower()
    return found if re.fullmatch("[0-9a-f]{64}", found) else ""


def reason(url: str, error: OSError) -> str:
    """Why a request failed, and what to do."""
    page = f"{_endpoint()}/{repository(url)}"
    if not isinstance(error, urllib.error.HTTPError):
        return str(getattr(error, "reason", error)) or type(error).__name__
    if error.code in (401, 403):
        return (
            f"HTTP {error.code}: there is no such repository, or it is gated: accept its license "
            f"at {page} and set HF_TOKEN to a token of yours"
        )
    if error.code == 404:
        return f"HTTP 404: {page} has no such file"
    return f"HTTP {error.code} {error.reason}"


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


class _UntilHash(urllib.request.HTTPRedirectHandler):
    """Follows redirects up to the answer with the hash, which points to another server."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if headers.get(_HASH) or urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)
