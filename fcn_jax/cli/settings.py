"""`fcn-jax settings`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from fcn_jax.cli.arguments import Commands


def add_commands(commands: Commands) -> None:
    """Add the command."""
    commands.add("settings", "Print all settings of a recipe, as Markdown.", _settings)


def _settings(args: argparse.Namespace) -> int:
    print(settings_reference(), end="")
    return 0


def settings_reference() -> str:
    """Return a Markdown table for each section: key, type, default and meaning of its settings."""
    from fcn_jax.config import Config

    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    lines: list[str] = []
    for section, field in schema["properties"].items():
        table = _resolved(field, definitions)
        lines += [f"## {section}", "", table["description"], ""]
        lines += ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [*_rows(section, table, definitions), ""]
    return "\n".join(lines[:-1]) + "\n"


def _rows(prefix: str, table: Any, definitions: Any) -> Iterator[str]:
    for name, field in table["properties"].items():
        key, default = f"{prefix}.{name}", field.get("default", "required")
        shown = {None: "not set", "": "empty", "required": "required"}.get(
            default if isinstance(default, str | None) else 0, f"`{json.dumps(default)}`"
        )
        cells = (f"`{key}`", _type(field, definitions), shown, field.get("description", ""))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        if (items := _resolved(field.get("items", {}), definitions)).get("properties"):
            yield from _rows(f"{key}[]", items, definitions)


def _resolved(field: Any, definitions: Any) -> Any:
    """Return the definition that a field refers to, or the field itself."""
    return definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field


def _type(field: Any, definitions: Any) -> str:
    """Return a JSON schema's type in words."""
    field = _resolved(field, definitions)
    if "anyOf" in field:
        kinds = (kind for kind in field["anyOf"] if kind.get("type") != "null")
        return " or ".join(_type(kind, definitions) for kind in kinds)
    if "enum" in field:
        return " or ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if field["type"] == "array" and "prefixItems" in field:
        items = field["prefixItems"]
        return f"list of {len(items)}: {_type(items[0], definitions)}"
    if field["type"] == "array":
        return f"list of {_type(field['items'], definitions)}s"
    words = {"boolean": "true or false", "object": "table"}
    limits = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{word} {field[name]:.12g}" for name, word in limits.items() if name in field]
    return " ".join([words.get(field["type"], field["type"]), ", ".join(bounds)]).strip()
