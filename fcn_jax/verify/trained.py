"""Trained models: what they are, and their weights as a file of PyTorch's names."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fcn_jax import checkpoint
from fcn_jax.checkpoint import remote
from fcn_jax.convert import hub
from fcn_jax.convert.command import export_file
from fcn_jax.convert.load import is_checkpoint
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import ModelSpec


def spec_of_trained(source: str) -> ModelSpec | None:
    """The spec of a run, checkpoint, portable directory or model of the hub; None for other names.

    Registered names of models and backbones come first.

    Raises:
        CheckpointError: the source is unreadable, or cannot be downloaded.
    """
    plugins = registry.default()
    if {source.split(":")[-1]} & {*plugins.names("models"), *plugins.names("backbones")}:
        return None
    if not Path(source).is_dir() and remote.parse(source) is None:
        return None
    return checkpoint.read_spec(checkpoint.find(source)).model


@contextlib.contextmanager
def as_weights_file(source: str | Path, spec: ModelSpec, key_format: str) -> Iterator[str | Path]:
    """A weights file or its name as it is; for a trained model, a temporary file with its weights.

    Args:
        source: as `fcn_jax.convert.load.init_from` takes it.
        spec: the model to be filled.
        key_format: naming scheme of the file.

    Raises:
        CheckpointError: the source is unreadable, or cannot be downloaded.
        ConfigError: the model has no table of the key format.
    """
    source = hub.localize(source, spec)
    if not is_checkpoint(source):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        export_file(source, file, key_format=key_format)
        yield file
