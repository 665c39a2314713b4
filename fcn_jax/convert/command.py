"""`fcn-jax convert`: PyTorch weights to a checkpoint, and back."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.convert import hub
from fcn_jax.convert.export import export_weights
from fcn_jax.convert.load import import_weights, init_missing, starts_new_head
from fcn_jax.convert.report import LoadReport
from fcn_jax.convert.tables import tables
from fcn_jax.errors import ConfigError, WeightsError, listing
from fcn_jax.models.build import build, build_backbone
from fcn_jax.models.names import WEIGHTS, leaves
from fcn_jax.models.spec import registered_spec
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.pytorch import files, kinds
from fcn_jax.runtime import atomic, destination, json_text

_log = logging.getLogger(__name__)

RECORD_KEY = "fcn-jax-verify"
"""Name of the record of a verification in the metadata of a `.safetensors` file."""

_RECORD = ".verify.json"
"""Added to the name of a `.pth` file for the file with this record."""


def convert_file(
    source: str | Path,
    model: str,
    output: Path,
    *,
    reinit: Sequence[str] = (),
    drop: Sequence[str] = (),
    key: str = "",
    seed: int = 0,
    prove: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    **changes: Any,
) -> LoadReport:
    """Convert PyTorch weights to a checkpoint for `train --weights`, `eval` and `predict`.

    A checkpoint of a backbone alone is for `train --weights` only.

    Args:
        source: a weights file, the name of published weights of the model or its backbone, or the
            id of a model on the hub, of another library.
        model: a registered model; or a registered backbone, with `head` for a model, without it
            for the backbone's weights alone.
        output: directory to write; must be missing or empty.
        reinit: globs over names of tensors that are initialized at random.
        drop: globs over the file's names of tensors that are dropped.
        key: which of several state dicts of the file to load, such as "model_ema".
        seed: of the random values.
        prove: called with the arrays by dotted name before the checkpoint is written; returns the
            report of their verification to store in it. If it raises, nothing is written.
        changes: fields of `fcn_jax.api.ModelSpec` to replace, such as `num_classes=3`; None keeps
            the model's value. `head` and `aux_head` are for a backbone; without `aux_head` that of
            the file is dropped. Options are added to those of the model.

    Returns:
        A report of the use of each tensor, which is also kept in the checkpoint.

    Raises:
        ConfigError: `model` is not a registered model or backbone, or its parts and options are
            wrong.
        WeightsError: the file cannot be read or downloaded, or does not fit.
        CheckpointError: `output` is not empty.
        WriteError: `output` cannot be written.
    """
    destination.check_new(output)
    checkpoint.require_empty(output)
    spec = _changed_spec(model, changes)
    source = hub.localize(source, spec)
    if Path(source).is_dir():
        raise WeightsError(
            f"{source}: {kinds.of_directory(Path(source))} "
            "(fcn-jax export reads a run or checkpoint)"
        )

    def build_it() -> nnx.Module:
        return _build(spec, nnx.Rngs(seed))

    module = nnx.eval_shape(build_it)
    report = import_weights(module, spec, source, reinit, drop=drop, key=key)
    if (
        spec.head is not None
        and report.scope == "backbone"
        and not starts_new_head(leaves(module), reinit, tables(spec))
    ):
        raise WeightsError(
            f"{source}: holds the backbone alone; convert it with --model {spec.backbone}, or "
            "initialize the head at random with --reinit head"
        )
    init_missing(module, build_it, WEIGHTS)
    arrays = checkpoint.arrays(module)
    evidence = prove(arrays) if prove is not None else None
    described = checkpoint.make_spec(spec, weights=dataclasses.asdict(report))
    checkpoint.save_model(output, described, arrays, evidence)
    return report


_FOR_HEADS = {
    "num_classes": "--num-classes",
    "task": "--task",
    "aux_head": "--aux-head",
    "head_options": "--head-option",
    "aux_head_options": "--aux-head-option",
}


def _changed_spec(model: str, changes: Mapping[str, Any]) -> ModelSpec:
    """The spec of a registered model or backbone with changed fields."""
    spec = registered_spec(model)
    given = {name: value for name, value in changes.items() if value not in (None, {})}
    if spec.head is not None and ("head" in given or "aux_head" in given):
        raise ConfigError(
            f"'{model}' is a model with the head '{spec.head}'; --head and --aux-head are for a "
            "backbone"
        )
    for_head = [option for name, option in _FOR_HEADS.items() if name in given]
    if spec.head is None and "head" not in given and for_head:
        raise ConfigError(
            f"{', '.join(for_head)}: for a model with a head; '{model}' is a backbone, and "
            "--head NAME adds a head to it"
        )
    for name, value in given.items():
        if name.endswith("_options"):
            given[name] = {**getattr(spec, name), **value}
    spec = dataclasses.replace(spec, **given)
    if spec.aux_head is None and "aux_head_options" in given:
        raise ConfigError("--aux-head-option is for an auxiliary head; name it with --aux-head")
    return spec


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """The tensors that were written for PyTorch.

    Attributes:
        source: the checkpoint's directory.
        key_format: naming scheme of the tensors.
        scope: "model", or "backbone" for a checkpoint of a backbone alone.
        tensors: names in the file.
        dropped: names that were dropped when the checkpoint was converted from a file -> reason.
        weights: "ema", averages of the weights, or "raw".
        verified: where the record of the checkpoint's verification was written; "" if it has none.
    """

    source: str
    key_format: str
    scope: str
    tensors: tuple[str, ...]
    dropped: Mapping[str, str]
    weights: str = "raw"
    verified: str = ""

    def __str__(self) -> str:
        """One line for a log."""
        averaged = ", ema weights" if self.weights == "ema" else ""
        how = f"{self.key_format} names, {self.scope}{averaged}"
        line = f"{len(self.tensors)} tensors of {self.source} ({how})"
        if self.verified:
            line += f"; the record of their verification is in {self.verified}"
        if not self.dropped:
            return line
        return f"{line}; {len(self.dropped)} had been dropped on import: {listing(self.dropped)}"


def export_file(
    source: str | Path,
    output: Path,
    *,
    key_format: str = "torchvision",
    weights: str | None = None,
) -> ExportReport:
    """Write a checkpoint's weights as a state dict that `load_state_dict(strict=True)` accepts.

    The record of the verification of a converted checkpoint (`verify.json`) goes with it: into the
    metadata of a `.safetensors` file, or next to another file as `FILE.verify.json`.

    Args:
        source: a run (its best checkpoint), a checkpoint or a converted model.
        output: `.pth` or `.safetensors` file to write, which must not exist; only `.pth` needs
            torch.
        key_format: naming scheme; see `fcn_jax.to_torch`.
        weights: "ema" for the averages of the weights, or "raw"; the averages if there are any, if
            None.

    Raises:
        CheckpointError: the source is not a checkpoint, it is incomplete, or it has no averages.
        ConfigError: the model's parts do not offer the key format.
        WeightsError: `output` exists or has another suffix, or torch is needed and not installed.
        WriteError: `output` cannot be written.
    """
    files.require_suffix(output)
    for path in (output, Path(f"{output}{_RECORD}")):
        if os.path.lexists(path):
            raise WeightsError(f"{path}: exists; name another file")
    destination.check_new(output)
    directory = checkpoint.find(source)
    spec = checkpoint.read_spec(directory)
    chosen = checkpoint.choose_weights(directory, weights)
    module = checkpoint.load_module(directory, lambda: _build(spec.model, nnx.Rngs(0)), chosen)
    tensors = export_weights(module, spec.model, key_format)
    record, verified = _record(directory, module, tensors), ""
    files.write(output, tensors, {RECORD_KEY: json_text.dumps(record)} if record else None)
    if record:
        verified = "its metadata"
        if output.suffix != ".safetensors":
            verified = f"{output}{_RECORD}"
            atomic.write_json(verified, record)
    scope = "backbone" if spec.model.head is None else "model"
    dropped = (spec.weights or {}).get("dropped", {})
    return ExportReport(
        str(directory), key_format, scope, tuple(tensors), dropped, chosen, verified
    )


def _record(
    directory: Path, module: nnx.Module, tensors: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """What an exported file says about its verification; None without a valid report."""
    path = directory / checkpoint.EVIDENCE
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        described = report["weights"]["arrays_sha256"]
        record = {name: report[name] for name in ("schema", "version", "verdict", "subject")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s is unreadable (%s); the export has no record of it", path, error)
        return None
    if described != files.digest(checkpoint.arrays(module)):
        _log.warning("%s describes other weights; the export has no record of it", path)
        return None
    hashes = {"report_sha256": files.sha256(path), "tensors_sha256": files.digest(tensors)}
    return {**record, **hashes}


def _build(spec: ModelSpec, rngs: nnx.Rngs) -> nnx.Module:
    return build_backbone(spec, rngs=rngs) if spec.head is None else build(spec, rngs=rngs)
