"""Published weight files: fetched once, known by their SHA-256, kept in a cache."""

from __future__ import annotations

import contextlib
import http.client
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from fcn_jax.errors import PluginError, WeightsError
from fcn_jax.plugins.api import Weights
from fcn_jax.pytorch import files
from fcn_jax.runtime import cache
from fcn_jax.runtime.atomic import replacing

_ATTEMPTS = 3
_CHUNK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte


def cached_path(weights: Weights) -> Path:
    """Where a file is kept, or is to be put by hand: its own name, with its hash if that is not part of it as torchvision's is."""
    name = Path(unquote(urlsplit(weights.url).path)).name
    digits = weights.sha256.lower()[:8]
    return cache.folder() / (
        name if digits in name else f"{Path(name).stem}-{digits}{Path(name).suffix}"
    )


def fetch(weights: Weights, *, sleep: Callable[[float], object] = time.sleep) -> Path:
    """The file of published weights: from the cache, where its hash is verified again, or else from its address.

    A transfer that breaks off, and a server that is overloaded, is tried three times in all; it
    goes on where it was if the server can. The file appears in the cache whole and verified, or not
    at all.

    Args:
        weights: address and hash.
        sleep: waits for so many seconds before another attempt.

    Raises:
        WeightsError: there is no connection, the server answers with an error, or the file has
            another hash. Nothing is kept then.
        WriteError: the cache cannot be written.
        PluginError: whoever registered the weights gave less than eight digits of their hash.
    """
    expected = weights.sha256.lower()
    if not re.fullmatch("[0-9a-f]{8,64}", expected):
        raise PluginError(
            f"the weights at {weights.url} are registered with SHA-256 '{expected}'; it must be 8 to 64 hex digits"
        )
    path = cached_path(weights)
    stale = ""
    if path.is_file():
        found = files.sha256(path)
        if found.startswith(expected):
            return path
        stale = f" (what is there has SHA-256 {found[: len(expected)]}, expected is {expected})"
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file, _progress(path.name) as report:
                _download(weights.url, file, report, sleep)
        except _NotFetchedError as error:
            raise WeightsError(
                f"{weights.url}: cannot be fetched: {error}; fetch it by other means and put it at {path}{stale}, or give the file's path "
                "in place of the name"
            ) from error
        found = files.sha256(temporary)
        if not found.startswith(expected):
            raise WeightsError(
                f"{weights.url}: the file's SHA-256 begins with {found[: len(expected)]}, expected is {expected}; it was not kept"
            )
    return path


class _NotFetchedError(Exception):
    """Why an attempt failed, and whether another may succeed."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


def _download(
    url: str,
    file: BinaryIO,
    report: Callable[[int, int | None], None],
    sleep: Callable[[float], object],
) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            _attempt(url, file, report)
            break
        except _NotFetchedError as error:
            if error.final or attempt + 1 == _ATTEMPTS:
                raise
            sleep(2.0**attempt)


def _attempt(url: str, file: BinaryIO, report: Callable[[int, int | None], None]) -> None:
    """Write what `file` lacks, or all of it if the server does not continue."""
    request = urllib.request.Request(url, headers={"User-Agent": "fcn-jax"})
    if file.tell():
        request.add_header("Range", f"bytes={file.tell()}-")
    with contextlib.ExitStack() as stack:
        with _network_errors():
            response = stack.enter_context(urllib.request.urlopen(request, timeout=_TIMEOUT))
        if not response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
            file.seek(0)
            file.truncate()
        length = response.headers.get("Content-Length")
        total = file.tell() + int(length) if length else None
        while True:
            with _network_errors():
                chunk = response.read(_CHUNK)
            if not chunk:
                break
            file.write(chunk)
            report(file.tell(), total)
    if total is not None and file.tell() < total:
        raise _NotFetchedError(
            f"the connection ended after {file.tell()} of {total} bytes", final=False
        )


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Tell what went wrong on the way from what goes wrong with the file: both are `OSError`s."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise _NotFetchedError(
            f"HTTP {error.code} {error.reason}",
            final=error.code < 500 and error.code not in (408, 429),
        ) from error
    except urllib.error.URLError as error:  # no connection
        raise _NotFetchedError(str(error.reason), final=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise _NotFetchedError(str(error) or type(error).__name__, final=False) from error


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    columns: list[Any] = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
    ]
    columns += [progress.TransferSpeedColumn(), progress.TimeRemainingColumn()]
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
