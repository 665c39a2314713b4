"""The JSON table of a report: its schema, its values, and whether a table that was read is one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fcn_jax.errors import ConfigError, listing

SCHEMA = "fcn-jax-verify"
"""The schema that a report's JSON names; docs/evidence.md describes it."""

VERSION = 1
"""The version of the schema that is written, and the newest that is read."""

GENERATOR = "fcn-jax verify"
"""The generator that a report names. Files of another generator are never replaced."""

_EVIDENCE = ("verdict", "environment", "criterion", "settings", "weights", "sources", "sections")
"""Fields without which a JSON report is damaged."""


def check_table(table: Any, source: str) -> None:
    """Raise `ConfigError` if a JSON value is no report, one of a newer version, or incomplete.

    Args:
        table: a JSON value.
        source: the file's name for messages.
    """
    if not isinstance(table, Mapping) or table.get("schema") != SCHEMA:
        raise ConfigError(
            f"{source}: not a report of fcn-jax verify (it lacks the schema '{SCHEMA}'); "
            "`fcn-jax verify --report FILE.json` writes one"
        )
    version = table.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ConfigError(
            f"{source}: a report of version {version}; this fcn-jax reads version {VERSION}, "
            "so update it, or write the report again"
        )
    if missing := [name for name in _EVIDENCE if name not in table]:
        raise ConfigError(f"{source}: a damaged report (it lacks {listing(missing)})")
    versions = _mapping(table["environment"]).get("versions")
    if not isinstance(versions, Mapping) or not isinstance(
        _mapping(table["weights"]).get("source", ""), str
    ):
        raise ConfigError(
            f"{source}: a damaged report (environment.versions must be a table, weights.source "
            "text); write it again"
        )


def with_numbers(entries: Any) -> list[Any]:
    """Entries of a JSON report, with infinity for the numbers that are null there."""
    return [
        {key: math.inf if value is None else value for key, value in entry.items()}
        for entry in entries
    ]


def plain(value: Any) -> Any:
    """A value as JSON has it: dictionaries and lists."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def finite(value: float) -> float | None:
    """The number, or None if it is not finite."""
    return value if math.isfinite(value) else None
