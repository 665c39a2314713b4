"""Recipes: the shipped TOML files, a user's own files, and the settings that a run records."""

from __future__ import annotations

import copy
import importlib.resources
import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcn_jax.config import PLUGIN_NAMES, Config, parse, with_own_plugins
from fcn_jax.errors import CheckpointError, ConfigError, did_you_mean
from fcn_jax.plugins import registry
from fcn_jax.runtime.text_file import decode_text, read_text


def names() -> list[str]:
    """Return the names of the shipped recipes."""
    files = importlib.resources.files("fcn_jax.recipes").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def text_of(name: str) -> str:
    """Return the text of a shipped recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in names():
        raise ConfigError(
            f"no recipe '{name}'. {did_you_mean(name, names())} "
            "The name of a recipe file must end in .toml."
        )
    file = importlib.resources.files("fcn_jax.recipes") / f"{name}.toml"
    return file.read_text(encoding="utf-8")


def header_of(text: str) -> dict[str, str]:
    """Return the fields of the comments at the start of a shipped recipe.

    The first line is the command. Lines such as `# time: 10 minutes` are fields; a line that is
    indented more continues one.

    Returns:
        By name: "command", "hardware", "time", "score".
    """
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    command, *others = (line.removeprefix("#").removeprefix(" ") for line in lines)
    fields, last = {"command": command}, None
    for line in others:
        name, colon, value = line.partition(": ")
        if colon and name in _FIELDS:
            fields[last := name] = value.strip()
        elif last and line.startswith("  "):
            fields[last] += f" {line.strip()}"
        else:
            last = None
    return fields


_FIELDS = ("hardware", "time", "score")


def read_recipe(name: str) -> dict[str, Any]:
    """Read a recipe as a table of settings.

    Args:
        name: name of a shipped recipe, or a path that ends in `.toml`.

    Raises:
        ConfigError: there is no such recipe or file, or it is not TOML.
    """
    shipped = not name.endswith(".toml")
    if shipped:
        contents = text_of(name).encode()
    else:
        path = Path(name)
        if not path.is_file():
            what = "a folder, not a recipe file" if path.is_dir() else "no such recipe file"
            raise ConfigError(f"{path}: {what}")
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        table = tomllib.loads(decode_text(contents))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not a TOML file: {error}") from error
    return with_own_plugins(table) if shipped else table


def override(
    table: Mapping[str, Any], settings: Sequence[str], option: str = "--set"
) -> dict[str, Any]:
    """Return a table with `a.b=value` settings applied.

    A value is read as TOML. A value that is not TOML, such as a bare word, is a string.

    Args:
        table: nested tables; not changed.
        settings: such as "optim.lr=0.01"; later ones win.
        option: the command-line option that gave the settings, for errors.

    Raises:
        ConfigError: a setting has no `=`, goes through a value that is not a table, or is a list,
            table or string without its end.
    """
    result: dict[str, Any] = copy.deepcopy(dict(table))
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            example = "optim.lr=0.01" if option == "--set" else "width=64"
            raise ConfigError(
                f"{option} {setting}: write it as KEY=VALUE, such as {option} {example}"
            )
        *parents, last = parts
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{option} {setting}: '{parent}' is a value, not a table")
        node[last] = _value(f"{option} {setting}", text.strip())
    return result


def _value(setting: str, text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
        # A comment or a second line would be dropped silently.
        if repr(tomllib.loads(f"value = [{text}]")["value"]) == repr([value]):
            return value
    except (ValueError, RecursionError) as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise ConfigError(
                f"{setting}: the value is not TOML ({error}); "
                "quote it for the shell, as in 'data.crop_size=[64,64]'"
            ) from error
    return text


def read_run(run: Path) -> Config:
    """Read the settings that a run directory records.

    Plugin names mean the plugins that the run was made with.

    Raises:
        CheckpointError: the directory records no settings, or none that this version reads.
    """
    path = run / "config.json"
    try:
        table = json.loads(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"{run}: no run to continue or evaluate here (it has no config.json)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise CheckpointError(f"{path}: the run's recipe cannot be read ({reason})") from error
    if isinstance(table, dict):
        _use_recorded_plugins(table, run)
    try:
        return parse(table, str(path))
    except ConfigError as error:
        raise CheckpointError(
            f"{error} (this fcn-jax did not write it: another version?)"
        ) from error


def _use_recorded_plugins(table: dict[str, Any], run: Path) -> None:
    """Resolve plugin names within the distributions that the run recorded, in place."""
    try:
        recorded = json.loads(read_text(run / "versions.json"))
        own = {"distribution": registry.OWN_DISTRIBUTION}
        records = {**recorded["plugins"], "dataset": recorded.get("dataset", own)}
        for section, key, kind in PLUGIN_NAMES:
            if key in records:
                table[section][key] = registry.default().own_name(
                    kind, table[section][key], records[key]["distribution"]
                )
        losses = recorded.get("losses", dict.fromkeys(table.get("loss", {}), own))
        table["loss"] = {
            registry.default().own_name("losses", name, losses[name]["distribution"]): loss
            for name, loss in table["loss"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # The record is incomplete. Names that are not ambiguous need none.
