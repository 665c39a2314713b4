"""`fcn-jax settings`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from typing import Any

from fcn_jax.cli.arguments import add_command


def add_commands(commands: Any) -> None:
    """Add the command."""
    add_command(commands, "settings", "Print all settings of a recipe, as Markdown.", _settings)


def _settings(args: argparse.Namespace) -> int:
    print(settings_reference(), end="")
    return 0


def settings_reference() -> str:
    """Return a Markdown table for each section: key, type, default and meaning of its settings."""
    from fcn_jax.config import AUTO, AUTO_MODEL, Config

    schema, defaults = Config.model_json_schema(), Config().model_dump(mode="json")
    definitions = schema["$defs"]
    lines: list[str] = []
    for section, field in schema["properties"].items():
        if section == "loss":
            lines += _losses(field, definitions)
            continue
        table = _resolved(field, definitions)
        for key in AUTO_MODEL if section == "model" else ():
            table["properties"][key]["anyOf"].append({"enum": [AUTO]})
        summary, _, attributes = table["description"].partition("\n\nAttributes:\n")
        attributes = attributes.replace("None for", "if not set,")
        # A dataclass describes its fields in its docstring.
        for name, text in re.findall(r"^ {4}(\w+): ((?:.|\n {8})*)", attributes, re.MULTILINE):
            table["properties"][name]["description"] = text[:1].upper() + text[1:]
        lines += [f"## {section}", "", summary, "", *_HEADER]
        lines += [*_rows(section, table, defaults[section], definitions), ""]
    return "\n".join(lines[:-1]) + "\n"


_HEADER = ("| setting | type | default | meaning |", "| --- | --- | --- | --- |")


def _losses(field: Any, definitions: Any) -> list[str]:
    """The lines of the section whose keys are names of losses."""
    table = _resolved(field["additionalProperties"], definitions)
    defaults = {key: value["default"] for key, value in table["properties"].items()}
    summary = " ".join(field["description"].split())
    lines = ["## loss", "", summary, "", *_HEADER]
    lines += _rows("loss.NAME", table, defaults, definitions)
    return [*lines, "", "[losses.md](losses.md) lists the losses and their own options.", ""]


def _rows(prefix: str, table: Any, defaults: Any, definitions: Any) -> Iterator[str]:
    for name, default in defaults.items():
        key, field = f"{prefix}.{name}", table["properties"][name]
        if default in (None, "", _REQUIRED):
            shown = {None: "not set", "": "empty"}.get(default, _REQUIRED)
        else:
            shown = f"`{json.dumps(default)}`"
        meaning = " ".join(field["description"].split())
        cells = (f"`{key}`", _type(field, definitions), shown, meaning)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        for ending, inner in (
            ("[]", field.get("items", {})),
            *(("", kind) for kind in field.get("anyOf", ())),
        ):
            items = _resolved(inner, definitions)
            if properties := items.get("properties"):
                inner_defaults = {k: v.get("default", _REQUIRED) for k, v in properties.items()}
                yield from _rows(f"{key}{ending}", items, inner_defaults, definitions)


_REQUIRED = "required"


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
        kind, _, bounds = _type(field["items"], definitions).partition(" ")
        return f"list of {kind}s {bounds}".strip()
    words = {"boolean": "true or false", "object": "table"}
    limits = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    found = [f"{word} {field[name]:.12g}" for name, word in limits.items() if name in field]
    return " ".join([words.get(field["type"], field["type"]), ", ".join(found)]).strip()
