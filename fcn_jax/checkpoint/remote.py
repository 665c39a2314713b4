"""Models on the Hugging Face Hub: their ids, download into the cache, and upload.

An id is `ORGANIZATION/NAME`, or `hf://ORGANIZATION/NAME`, with `@REVISION` for a branch, tag or
commit. Without `hf://`, a path that exists, or whose first folder exists, is a path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcn_jax.errors import CheckpointError, WriteError
from fcn_jax.runtime import cache

_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?"
_ID = re.compile(rf"(?P<scheme>hf:/{{1,2}})?(?P<name>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+))?")
_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "verify.json", "README.md")
_PICKLED = ("pytorch_model.bin",)
_IS_FILE = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".npz", ".json", ".zip", ".tar")


@dataclasses.dataclass(frozen=True)
class HubId:
    """The id of a model on the hub.

    Attributes:
        name: ORGANIZATION/NAME.
        revision: branch, tag or commit; None for the main branch.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        """The id with its scheme."""
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")


def parse(text: str | Path) -> HubId | None:
    """The id that a text names, or None if it names a path."""
    found = _ID.fullmatch(str(text))
    if found is None:
        return None
    if not found["scheme"] and (
        str(text).lower().endswith(_IS_FILE) or Path(text).exists() or Path(text).parent.exists()
    ):
        return None
    return HubId(found["name"], found["revision"])


def fetch(model: HubId, *, token: str | None = None) -> Path:
    """Download the files of a model into the cache, or find them there.

    Only `config.json`, `.safetensors` files, the model card and the verification record are
    fetched; `pytorch_model.bin` if the model has no `.safetensors` file. Without a connection, the
    files in the cache are used.

    Args:
        model: the id.
        token: access token; None for that of `hf auth login` or `HF_TOKEN`.

    Returns:
        A folder with the files.

    Raises:
        CheckpointError: huggingface_hub is not installed, the model or its revision does not exist,
            access to it is restricted, or there is no connection and it is not in the cache. The
            message says which files to put where.
    """
    hub = _library(model)
    options: dict[str, Any] = {
        "repo_id": model.name,
        "revision": model.revision,
        "cache_dir": cache.folder() / "hub",
        "library_name": "fcn-jax",
        "token": token,
        "endpoint": _endpoint(),
    }
    with _errors(model):
        folder = Path(hub.snapshot_download(allow_patterns=list(_FILES), **options))
        if not any(folder.glob("*.safetensors")):
            folder = Path(hub.snapshot_download(allow_patterns=[*_FILES, *_PICKLED], **options))
    return folder


def upload(
    folder: Path, model: HubId, *, private: bool = False, token: str | None = None, message: str
) -> str:
    """Upload the files of a folder in one commit, and return the address of the commit.

    The repository is made if it does not exist.

    Raises:
        WriteError: huggingface_hub is not installed, there is no token, it does not permit to
            write, or there is no connection.
    """
    try:
        hub = _library(model)
        with _errors(model):
            api = hub.HfApi(_endpoint(), token=token, library_name="fcn-jax")
            api.create_repo(model.name, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=model.name,
                folder_path=folder,
                revision=model.revision,
                commit_message=message,
            )
    except CheckpointError as error:
        raise WriteError(str(error)) from error
    return str(commit.commit_url)


def _endpoint() -> str | None:
    """Address of the hub; None for the public one. huggingface_hub reads it only when imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _library(model: HubId) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f"{model}: no local path of this name exists, and for models on the hub "
            "huggingface_hub is needed; pip install 'fcn-jax[hub]'"
        ) from error
    huggingface_hub.logging.set_verbosity_error()  # each retry would be two lines
    return huggingface_hub


@contextlib.contextmanager
def _errors(model: HubId) -> Iterator[None]:
    """Turn errors of huggingface_hub into a `CheckpointError` of one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{model}: access is restricted; accept the terms on the model's page, then log in "
            "with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{model}: neither a local path nor a model on the hub that your token may see; check "
            "the name, or log in with `hf auth login` if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{model}: the model exists, but has no revision '{model.revision}'"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{model}: there is no local path of this name, no connection to the hub, and the "
            "model is not in the cache; copy its config.json and model.safetensors to a folder, "
            "and give that folder"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError, OSError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise CheckpointError(f"{model}: the hub refuses: {reason.strip()}") from error
