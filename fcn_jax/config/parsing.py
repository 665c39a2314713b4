"""Tables of settings to `Config`, with errors that name every mistake."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from fcn_jax.config.augment import AUGMENT_TABLES
from fcn_jax.config.optim import ParamGroup
from fcn_jax.config.sections import (
    AUTO_MODEL,
    Config,
    EarlyStoppingConfig,
    WandbConfig,
)
from fcn_jax.config.types import OrAuto, short
from fcn_jax.errors import ConfigError, PluginError, did_you_mean
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import ModelSpec


def parse(table: Mapping[str, Any], source: str = "recipe") -> Config:
    """Validate a table of settings.

    Args:
        table: nested tables, as TOML or JSON gives them.
        source: name of the table in errors.

    Raises:
        ConfigError: unknown keys, each with the nearest known one, and bad values, each with the
            allowed ones.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source}: is {short(table)}; expected a table of settings")
    try:
        table = with_own_plugins(table, only_missing=True)
        odd = {key: f"{key} is {value}: expected a finite number" for key, value in _odd(table)}
        problems = list(odd.values())
        try:
            config = Config.model_validate(table)
        except ValidationError as error:
            problems += [
                _explain(problem) for problem in error.errors() if _path(problem["loc"]) not in odd
            ]
    except RecursionError as error:
        raise ConfigError(f"{source}: tables are nested too deeply") from error
    if problems:
        raise ConfigError(f"{source}: {'; '.join(problems)}")
    return config


PLUGIN_NAMES = (
    ("model", "backbone", "backbones"),
    ("model", "head", "heads"),
    ("model", "aux_head", "heads"),
    ("data", "dataset", "datasets"),
)
"""Settings that name a plugin: section, key, kind of plugin."""


def with_own_plugins(table: Mapping[str, Any], *, only_missing: bool = False) -> dict[str, Any]:
    """Return a table in which plugin names mean this distribution's own plugins.

    Other distributions may register the same names; shipped recipes and defaults must not become
    ambiguous by that.

    Args:
        table: nested tables of settings.
        only_missing: change only the defaults of names that the table lacks.
    """
    result = dict(table)
    for section, key, kind in PLUGIN_NAMES:
        values = result.get(section, {})
        if not isinstance(values, Mapping) or (only_missing and key in values):
            continue
        name = values.get(key, getattr(getattr(Config(), section), key))
        if isinstance(name, str):
            own = registry.default().own_name(kind, name, registry.OWN_DISTRIBUTION)
            if own != name:
                result[section] = {**values, key: own}
    losses = result.get("loss", {name: {} for name in Config().loss})
    if isinstance(losses, Mapping) and not (only_missing and "loss" in result):
        own_losses = {
            registry.default().own_name("losses", name, registry.OWN_DISTRIBUTION): loss
            for name, loss in losses.items()
        }
        if own_losses.keys() != losses.keys():
            result["loss"] = own_losses
    return result


def same_plugins(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a complete table with full plugin names, to compare with another.

    Names that are not registered here stay as they are.
    """
    result = {section: dict(values) for section, values in table.items()}
    for section, key, kind in PLUGIN_NAMES:
        if (name := result[section][key]) is not None:
            with contextlib.suppress(ConfigError, PluginError):
                result[section][key] = registry.default().find(kind, name).full_name
    for name in table["loss"]:
        with contextlib.suppress(ConfigError, PluginError):
            full_name = registry.default().find("losses", name).full_name
            result["loss"][full_name] = result["loss"].pop(name)
    return result


def _odd(value: Any, key: str = "") -> list[tuple[str, float]]:
    """Return the dotted keys of all numbers that are not finite, and the numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return [(key, value)]
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    return [found for name, item in items for found in _odd(item, _join(key, name))]


def _join(key: str, part: Any) -> str:
    """The path of an item: optim.param_groups[0].lr_mult."""
    if isinstance(part, int):
        return f"{key}[{part}]"
    return f"{key}.{part}" if key else str(part)


def _path(location: tuple[Any, ...]) -> str:
    return functools.reduce(_join, location, "")


def _such_as(location: tuple[Any, ...]) -> str:
    default: Any = Config()
    for part in location:
        default = getattr(default, str(part), None)
    return f", such as {list(default)}" if default else ""


def _explain(problem: Any) -> str:
    """Return one clause about one problem that Pydantic found."""
    location = _path(problem["loc"])
    kind = problem["type"]
    if kind == "missing":
        return f"{location} is missing"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown(problem["loc"])
    wrong = f"{location} is {short(problem['input'])}"
    if kind in ("model_type", "dataclass_type", "mapping_type", "dict_type"):
        example = "{ match = 'head.*' }" if location.endswith("]") else f"[{location}]"
        return f"{wrong}: expected a table, such as {example}"
    said = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
    if kind == "tuple_type":
        said = f"expected a list in brackets{_such_as(problem['loc'])}"
    elif kind == "value_error":
        said = str(problem["ctx"]["error"])
    if isinstance(problem["input"], str) and location in AUTO_SETTINGS:
        said += ", or 'auto'"
    return f"{wrong}: {said}"


def _unknown(location: tuple[Any, ...]) -> str:
    """Say which key was meant: one of this name in another section, or a similar one here."""
    *parents, key = map(str, location)
    said = f"unknown key '{_path(location)}'."
    sections = {
        name: [] if name == "loss" else keys(field.annotation)
        for name, field in Config.model_fields.items()
    }
    elsewhere = [f"'{name}.{key}'" for name, known in sections.items() if key in known]
    if elsewhere:
        return f"{said} Did you mean {' or '.join(elsewhere)}?"
    if not parents:
        return f"{said} {did_you_mean(key, sections)}"
    known = _INNER.get(parents[1]) if parents[1:] else None
    return f"{said} {did_you_mean(key, sections[parents[0]] if known is None else keys(known))}"


AUTO_SETTINGS = (
    *(f"model.{name}" for name in AUTO_MODEL),
    *(
        f"{section}.{name}"
        for section, table in Config.model_fields.items()
        for name, field in getattr(table.annotation, "model_fields", {}).items()
        if any(isinstance(mark, OrAuto) for mark in field.metadata)
    ),
)
"""Dotted keys of the settings that may be "auto"."""

_INNER: Mapping[str, Any] = {
    "param_groups": ParamGroup,
    "early_stopping": EarlyStoppingConfig,
    **AUGMENT_TABLES,
    "wandb": WandbConfig,
}
"""Settings that are tables or lists of tables, and their classes."""


def keys(section: Any) -> list[str]:
    """Return the names of the settings of a section's class."""
    if section is ModelSpec:
        return [field.name for field in fields(ModelSpec) if field.name != "num_classes"]
    return list(section.model_fields)
