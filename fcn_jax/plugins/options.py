"""Options of backbones, heads and losses: open tables, validated by the plugin's own dataclass."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from fcn_jax.errors import ConfigError, did_you_mean
from fcn_jax.plugins.api import Backbone, Head, Loss


def validate(descriptor: Backbone | Head | Loss, table: Mapping[str, Any], key: str = "") -> Any:
    """Validate a table such as a recipe's `[model.backbone_options]`.

    Args:
        descriptor: the backbone, head or loss.
        table: JSON-able values. An integer may stand for a float, a list for a tuple; no other
            value is converted.
        key: dotted key of the table in a recipe, for errors.

    Returns:
        An instance of `descriptor.options`.

    Raises:
        ConfigError: all unknown keys and invalid values.
    """
    text = json.dumps({"options": dict(table)}, default=str)
    try:
        return cast(Any, _validator(descriptor.options).model_validate_json(text)).options
    except ValidationError as error:
        problems = [
            _explain(cast(Mapping[str, Any], problem), descriptor.options)
            for problem in error.errors()
        ]
    kind = type(descriptor).__name__.lower()
    said = f"the options of {kind} '{descriptor.name}' are wrong: {'; '.join(problems)}"
    raise ConfigError(f"{said} (in [{key}])" if key else said)


@functools.cache
def _validator(options: type) -> type[BaseModel]:
    # A dataclass takes over the strictness of the model around it, at any depth. In strict mode,
    # only JSON lets a list be a tuple.
    strict = ConfigDict(extra="forbid", strict=True)
    return create_model("Options", __config__=strict, options=(options, ...))


def _explain(problem: Mapping[str, Any], options: type) -> str:
    path, kind = problem["loc"][1:], problem["type"]
    key = ".".join(map(str, path))
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [field.name for field in dataclasses.fields(options) if field.init]
        hint = f". {did_you_mean(key, known).rstrip('.')}" if len(path) == 1 else ""
        return f"unknown key '{key}'{hint}"
    if kind == "value_error":
        text = str(problem["ctx"]["error"])
        return f"'{key}': {text}" if key else text
    said = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
    if kind == "too_short":
        least = problem["ctx"]["min_length"]
        said = f"input should have at least {least} item{'s' if least > 1 else ''}"
    elif kind in _COMPARISONS and len(path) == 1 and (bounds := _bounds(options, key)):
        said = f"input should be {' and '.join(bounds)}"
    return f"'{key}' is {problem['input']!r}; {said}"


_COMPARISONS = {
    "greater_than_equal": "ge",
    "greater_than": "gt",
    "less_than_equal": "le",
    "less_than": "lt",
}
"""Pydantic's types of errors by comparison, and its names of the bounds."""


def _bounds(options: type, key: str) -> list[str]:
    """All bounds of an option in words; Pydantic's message has only the one that is violated."""
    hint = get_type_hints(options, include_extras=True)[key]
    constraints = [
        constraint
        for item in getattr(hint, "__metadata__", ())
        for constraint in getattr(item, "metadata", (item,))
    ]
    return [
        f"{kind.replace('_equal', ' or equal to').replace('_than', ' than')} {bound}"
        for kind, name in _COMPARISONS.items()
        for constraint in constraints
        if (bound := getattr(constraint, name, None)) is not None
    ]
