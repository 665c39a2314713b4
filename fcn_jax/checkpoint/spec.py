"""The description of a checkpoint: how to build its model, and for which classes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from fcn_jax.checkpoint import files, messages, portable
from fcn_jax.errors import CheckpointError, ConfigError
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Classes, ModelSpec

FORMAT = 3
"""The format that is written and read. Formats 1 and 2 had other names of parameters."""


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
    """

    model: ModelSpec
    classes: Classes | None = None
    plugins: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, Any] | None = None
    value_range: Any = None
    split: Mapping[str, Any] | None = None
    losses: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as a dictionary that can be written as JSON."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

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
        CheckpointError: it is unreadable or of another format.
    """
    try:
        if portable.is_portable(directory):
            table = portable.config_of(directory)
        else:
            with messages.quiet(), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
                table = checkpointer.restore((directory / "spec").absolute())
        if not isinstance(table, dict):
            raise ValueError("not a JSON object")
        if table["format"] != FORMAT:
            raise CheckpointError(
                f"{directory}: checkpoint format {table['format']}; this fcn-jax reads format "
                f"{FORMAT}. Use the version that wrote it, or train or convert again: names of "
                "parameters have changed"
            )
        return Spec.from_dict(table)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{directory}: the checkpoint's 'spec' is unreadable or incomplete "
            f"({messages.first_line(error)})"
        ) from error


def latest_spec(run: Path) -> tuple[int, Spec] | None:
    """Step and description of a run's newest undamaged checkpoint, or None if there is none."""
    for step in reversed(files.steps(run / files.STEPS)):
        directory = run / files.STEPS / str(step)
        if files.fault(directory, files.RUN_ITEMS) is None:
            with contextlib.suppress(CheckpointError):
                return step, read_spec(directory)
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
