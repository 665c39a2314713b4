"""Options of backbones and heads: open tables, validated by the plugin's own dataclass."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from fcn_jax.errors import ConfigError, did_you_mean
from fcn_jax.plugins.api import Backbone, Head


def validate(descriptor: Backbone | Head, table: Mapping[str, Any]) -> Any:
    """Validate a table such as a recipe's `[model.backbone_options]`.

    Args:
        descriptor: the backbone or head.
        table: JSON-able values. An integer may stand for a float, a list for a tuple; no other
            value is converted.

    Returns:
        An instance of `descriptor.options`.

    Raises:
        ConfigError: all unknown keys and invalid values.
    """
    text = json.dumps({"options": dict(table)}, default=str)
    try:
        return cast(Any, _validator(descriptor.options).model_validate_json(text)).options
    except ValidationError as error:
        known = [field.name for field in dataclasses.fields(descriptor.options) if field.init]
        problems = [_explain(cast(Mapping[str, Any], problem), known) for problem in error.errors()]
    kind = type(descriptor).__name__.lower()
    raise ConfigError(f"the options of {kind} '{descriptor.name}' are wrong: {'; '.join(problems)}")


@functools.cache
def _validator(options: type) -> type[BaseModel]:
    # A dataclass takes over the strictness of the model around it, at any depth. In strict mode,
    # only JSON lets a list be a tuple.
    strict = ConfigDict(extra="forbid", strict=True)
    return create_model("Options", __config__=strict, options=(options, ...))


def _explain(problem: Mapping[str, Any], known: list[str]) -> str:
    path = problem["loc"][1:]
    key = ".".join(map(str, path))
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        hint = f". {did_you_mean(key, known).rstrip('.')}" if len(path) == 1 else ""
        return f"unknown key '{key}'{hint}"
    if problem["type"] == "value_error":
        text = str(problem["ctx"]["error"])
        return f"'{key}': {text}" if key else text
    return f"'{key}' is {problem['input']!r}; {problem['msg'][:1].lower()}{problem['msg'][1:]}"
