"""Write a model as a portable directory, and publish it on the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcn_jax import checkpoint
from fcn_jax.checkpoint import portable, remote
from fcn_jax.errors import ConfigError
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.models.spec import resolve
from fcn_jax.plugins.api import Classes
from fcn_jax.pretrained import card
from fcn_jax.pretrained.load import source_of
from fcn_jax.runtime import atomic, destination


@dataclasses.dataclass(frozen=True)
class Published:
    """What a portable directory says about a model, in addition to its weights.

    Attributes:
        spec: how to build the model, and its classes.
        tensors: parameters and batch statistics by dotted name.
        weights: "ema", averages of the weights, or "raw".
        scores: the evaluation of these weights, as `Evaluation.to_dict` returns it; None if there
            is none.
        evidence: the report of `fcn-jax verify` on these weights; None if there is none.
        license: SPDX identifier, such as "mit"; None if it is not stated.
    """

    spec: checkpoint.Spec
    tensors: Mapping[str, Any]
    weights: str = "raw"
    scores: Mapping[str, Any] | None = None
    evidence: Mapping[str, Any] | None = None
    license: str | None = None


def save_pretrained(
    model: Segmenter | str | Path,
    directory: str | Path,
    *,
    weights: str | None = None,
    classes: Classes | None = None,
    license: str | None = None,
) -> Path:
    """Write a portable directory: `config.json`, `model.safetensors` and `README.md`.

    `config.json` describes the model, its classes and preprocessing; `model.safetensors` holds
    parameters and batch statistics by dotted name; `README.md` is a model card with the classes,
    the scores of the last evaluation of these weights, and the record of their verification, if
    there are any. All commands that read a checkpoint read such a directory.

    Args:
        model: a model in memory, or the source of one, as `from_pretrained` takes it.
        directory: must be missing or empty.
        weights: "ema" or "raw" for a run or checkpoint; see `from_pretrained`.
        classes: names and colors, for a model in memory, or to replace those of the source.
        license: of the weights, as an SPDX identifier such as "mit". It is recorded in
            `config.json` and in the model card.

    Returns:
        The directory.

    Raises:
        CheckpointError: the source is not a model, or the directory is not empty.
        ConfigError: the number of classes differs from the model's.
        WriteError: the directory cannot be written.
    """
    destination.check_new(Path(directory))
    folder = checkpoint.require_empty(directory)
    published = _published(model, weights, classes, license)
    if folder.exists():
        folder.rmdir()
    with atomic.new_folder(folder) as temporary:
        _write(temporary, published, folder.name)
    return Path(directory)


def push_to_hub(
    model: Segmenter | str | Path,
    repo_id: str,
    *,
    weights: str | None = None,
    classes: Classes | None = None,
    license: str | None = None,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload a model of fcn-jax",
) -> str:
    """Publish a model on the Hugging Face Hub.

    A portable directory is uploaded as it is, so its model card may be edited before. Other models
    are written as by `save_pretrained`.

    Args:
        model: see `save_pretrained`.
        repo_id: `ORGANIZATION/NAME`, or `ORGANIZATION/NAME@BRANCH`. It is made if it does not
            exist.
        weights: see `save_pretrained`.
        classes: see `save_pretrained`.
        license: see `save_pretrained`.
        private: whether a new repository is private.
        token: access token; None for that of `hf auth login` or `HF_TOKEN`.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError, ConfigError: as `save_pretrained`.
        WriteError: the hub cannot be reached, or does not permit to write.
    """
    target = remote.parse(f"hf://{repo_id.removeprefix('hf://')}")
    if target is None:
        raise ConfigError(
            f"'{repo_id}' is not the id of a model on the hub; expected ORGANIZATION/NAME"
        )
    options: dict[str, Any] = {"private": private, "token": token, "message": message}
    if isinstance(model, str | Path) and portable.is_portable(Path(model)):
        if changed := [
            name
            for name, value in (("weights", weights), ("classes", classes), ("license", license))
            if value is not None
        ]:
            raise ConfigError(
                f"{model}: is a portable directory, which is uploaded as it is, without another "
                f"{' or '.join(changed)}; give the run or checkpoint that it was made from"
            )
        return remote.upload(checkpoint.find(model), target, **options)
    published = _published(model, weights, classes, license)
    with tempfile.TemporaryDirectory() as temporary:
        _write(Path(temporary), published, target.name)
        return remote.upload(Path(temporary), target, **options)


def _published(
    model: Segmenter | str | Path,
    weights: str | None,
    classes: Classes | None,
    license: str | None,
) -> Published:
    if isinstance(model, Segmenter):
        if weights is not None:
            raise ConfigError("weights is for a run or checkpoint, not for a model in memory")
        spec = checkpoint.make_spec(model.spec, classes)
        _require_as_many(classes, spec)
        return Published(spec, checkpoint.arrays(model), license=license)
    directory, spec = source_of(model)
    _require_as_many(classes, spec)
    chosen = checkpoint.choose_weights(directory, weights)
    if portable.is_portable(directory):
        license = license or portable.config_of(directory).get("license")
    return Published(
        spec if classes is None else dataclasses.replace(spec, classes=classes),
        checkpoint.read_arrays(directory, chosen),
        chosen,
        _scores(directory, chosen),
        _json(directory / checkpoint.EVIDENCE),
        license,
    )


def _require_as_many(classes: Classes | None, spec: checkpoint.Spec) -> None:
    if classes is not None and len(classes) != spec.model.num_labels:
        raise ConfigError(f"{len(classes)} classes for a model of {spec.model.num_labels} classes")


def _scores(directory: Path, weights: str) -> Mapping[str, Any] | None:
    """The evaluation of a checkpoint's weights, in its run or in its portable directory."""
    if portable.is_portable(directory):
        return portable.config_of(directory).get("scores")
    if directory.parent.name != checkpoint.STEPS:
        return None
    for path in sorted(directory.parent.parent.glob("evaluations/*/scores.json")):
        found = _json(path) or {}
        same = Path(str(found.get("checkpoint", ""))).name == directory.name
        if same and found.get("weights") == weights:
            return found
    return None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) else None


_SCORES = ("dataset", "split", "protocol", "images", "miou", "pixel_accuracy", "iou")
"""What `config.json` keeps of an evaluation."""


def _write(folder: Path, published: Published, name: str) -> None:
    spec, described = published.spec, resolve(published.spec.model)
    scores = published.scores and {name: published.scores.get(name) for name in _SCORES}
    config = {
        **spec.to_dict(),
        "preprocess": dataclasses.asdict(described.preprocess),
        "license": published.license,
        "averaged": published.weights == "ema",
        "scores": scores,
    }
    # Where a model was trained, and on which files, is private.
    config["weights"] = _without_paths(spec.weights)
    config["split"] = None
    portable.write(folder, config, published.tensors)
    if published.evidence is not None:
        atomic.write_json(folder / checkpoint.EVIDENCE, published.evidence)
    text = card.text(config, published.evidence, described.preprocess, name)
    atomic.write_text(folder / "README.md", text)


def _without_paths(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if record is None:
        return None
    source = record.get("source")
    return {**record, "source": Path(source).name if isinstance(source, str) else source}
