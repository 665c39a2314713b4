"""The description of a checkpoint: how to build its model, and for which classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from fcn_jax.checkpoint import files, messages, place, portable
from fcn_jax.errors import CheckpointError, ConfigError
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Classes, ModelSpec
from fcn_jax.runtime import versions

FORMAT = 3
"""The format that is written and read."""

READ_BY = {
    1: "development versions of fcn-jax before 0.1",
    2: "development versions of fcn-jax before 0.1",
}
"""The versions that read older formats. Both had other names of parameters."""


class FormatError(CheckpointError):
    """A checkpoint has a format that this version does not read."""


_PARTS = {"backbone": "backbones", "head": "heads", "aux_head": "heads"}
"""The parts of a model that are plugins, and their kinds."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """The description of a checkpoint.

    Attributes:
        model: the model to build.
        classes: names and colors, or None for converted weights, which have none.
        plugins: name, distribution and version of the backbone and heads.
        weights: record of the initial weights, or None.
        value_range: the scaling of images of more than 8 bits, as returned by
            `fcn_jax.data.value_range.to_json`; None if the data has no such images.
        split: the split that the run trains on: `images`, the number of images, and `digest`, a
            digest of their IDs; None if the model was not trained.
        losses: weight and options of each loss by name, with numbers that were computed from the
            dataset; None if the model was not trained, or by an earlier version.
        order: the order of the training records, as returned by `fcn_jax.data.order.fingerprint`;
            None if the model was not trained, or by an earlier version.
    """

    model: ModelSpec
    classes: Classes | None = None
    plugins: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, Any] | None = None
    value_range: Any = None
    split: Mapping[str, Any] | None = None
    losses: Mapping[str, Any] | None = None
    order: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the spec, the format and our version as a dictionary to be written as JSON."""
        return {"format": FORMAT, "fcn_jax": versions.own(), **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Spec:
        """Build a spec from the output of `to_dict`.

        Plugin names are resolved in the recorded distributions.
        """
        classes = table["classes"]
        if classes is not None:
            classes = Classes(
                tuple(classes["names"]), tuple((r, g, b) for r, g, b in classes["palette"])
            )
        model, plugins = dict(table["model"]), registry.default()
        for part, kind in _PARTS.items():
            if model.get(part) is not None and part in table["plugins"]:
                model[part] = plugins.own_name(
                    kind, model[part], table["plugins"][part]["distribution"], strict=True
                )
        return cls(
            ModelSpec(**model),
            classes,
            table["plugins"],
            table["weights"],
            table.get("value_range"),
            table.get("split"),
            table.get("losses"),
            table.get("order"),
        )


def make_spec(model: ModelSpec, classes: Classes | None = None, **fields: Any) -> Spec:
    """Make the spec of a model, with a record of the plugins that provide its parts.

    Args:
        model: the model to build.
        classes: names and colors, or None for converted weights.
        fields: other fields of `Spec`.
    """
    plugins = {
        part: registry.default().record(kind, name)
        for part, kind in _PARTS.items()
        if (name := getattr(model, part)) is not None
    }
    return Spec(model, classes, plugins, **fields)


def read_spec(directory: Path) -> Spec:
    """The description of a checkpoint.

    Raises:
        CheckpointError: it is unreadable.
        FormatError: it has another format; the message says which version reads it.
    """
    try:
        if portable.is_portable(directory):
            table = portable.config_of(directory)
        else:
            with messages.quiet(), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
                table = checkpointer.restore(place.absolute(directory / "spec"))
        if not isinstance(table, dict):
            raise ValueError("not a JSON object")
        if not isinstance(table["format"], int):
            raise ValueError(f"format is {table['format']!r}")
        if table["format"] != FORMAT:
            raise FormatError(f"{directory}: {_other_format(table)}")
        return Spec.from_dict(table)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{directory}: the checkpoint's 'spec' is unreadable or incomplete "
            f"({messages.first_line(error)})"
        ) from error


def _other_format(table: Mapping[str, Any]) -> str:
    found, writer = table["format"], table.get("fcn_jax")
    ours = f"this is fcn-jax {versions.own()}, which reads format {FORMAT}"
    if found > FORMAT:
        by = f"written by fcn-jax {writer}" if writer else "written by a newer fcn-jax"
        newer = f"'fcn-jax>={writer}'" if writer else "--upgrade fcn-jax"
        return f"checkpoint format {found}, {by}; {ours}. Upgrade it: pip install {newer}"
    readers = READ_BY.get(found, "no version of fcn-jax")
    return (
        f"checkpoint format {found}, which {readers} read; {ours}. Train or convert again, because "
        "names of parameters have changed, or install the version that wrote it"
    )


def latest_spec(run: Path) -> tuple[int, Spec] | None:
    """Step and description of a run's newest undamaged checkpoint, or None if there is none.

    Raises:
        FormatError: it has another format.
    """
    for step in reversed(files.steps(run / files.STEPS)):
        directory = run / files.STEPS / str(step)
        if files.fault(directory, files.RUN_ITEMS) is None:
            try:
                return step, read_spec(directory)
            except FormatError:
                raise
            except CheckpointError:
                continue
    return None


def require_plugins(spec: Spec, directory: Path) -> None:
    """Check that the plugins of a spec are installed.

    Raises:
        CheckpointError: a plugin is not installed. The message names its distribution and version.
    """
    for part, kind in _PARTS.items():
        record = spec.plugins.get(part)
        if record is None or record["distribution"] == "unknown":
            continue
        try:
            registry.default().find(kind, f"{record['distribution']}:{record['name']}")
        except ConfigError as error:
            owner = f"{record['distribution']} {record['version']}"
            raise CheckpointError(
                f"{directory}: its {part.replace('_', ' ')} '{record['name']}' is of {owner}, "
                f"which is needed to read it: {error}"
            ) from error
