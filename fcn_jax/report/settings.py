"""Settings of runs: their differences, and the command that makes a run again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fcn_jax import recipes
from fcn_jax.config import Config, parse
from fcn_jax.errors import ConfigError

_FLAGS = {"data.root": "--data", "init.weights": "--weights"}


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their dotted names, as `--set` takes them."""
    found: dict[str, Any] = {}
    for section, values in config.items():
        if not isinstance(values, Mapping):
            continue  # damaged, or of another version
        for key, value in values.items():
            if section == "loss" and isinstance(value, Mapping):
                found.update({f"loss.{key}.{option}": x for option, x in value.items()})
            else:
                found[f"{section}.{key}"] = value
    return found


def complete(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings with the defaults of those that they lack; as they are if they are invalid.

    An older version may have recorded fewer.
    """
    try:
        return parse(config).model_dump(mode="json")
    except ConfigError:
        return config


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the settings in which runs differ, with the value of each run; "-" for a missing one.

    With a single run, return those that differ from the defaults.
    """
    compared = [flat(complete(config)) for config in configs]
    if len(compared) == 1:
        compared.append(flat(Config().model_dump(mode="json")))
    names = dict.fromkeys(name for values in compared for name in values)
    return [
        (name, [_shown(values, name) for values in compared[: len(configs)]])
        for name in names
        if any(values.get(name) != compared[0].get(name) for values in compared)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return "-" if value is None else toml(value)


def command(config: Mapping[str, Any], workdir: str) -> str:
    """Return the `fcn-jax train` command with exactly these settings.

    It starts from the shipped recipe that needs the fewest changes.

    Raises:
        ConfigError: the settings are not those of this version, or no command can express them.
    """
    wanted = parse(config)
    found = [(len(changes), name, changes) for name, changes in _candidates(wanted)]
    if not found:
        raise ConfigError("no shipped recipe can be changed to these settings by options")
    _, name, changes = min(found)
    words = ["fcn-jax", "train", name]
    for key, value in changes:
        words += [_FLAGS[key], value] if key in _FLAGS else ["--set", f"{key}={toml(value)}"]
    return shlex.join([*words, "--workdir", workdir])


def _candidates(wanted: Config) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Return recipes and the changes that turn them into the wanted settings."""
    target = wanted.model_dump(mode="json")
    found = []
    for name in recipes.names():
        table = recipes.read_recipe(name)
        base = parse(table, name).model_dump(mode="json")
        same_losses = base["loss"] == target["loss"]
        old, new = flat(base), flat(target)
        changes = [
            (key, value)
            for key, value in new.items()
            if key not in old
            or old[key] != value
            or (key.startswith("loss.") and not same_losses)  # naming one drops the default
        ]
        if any(value is None for _, value in changes):
            continue  # TOML has no null
        settings = [f"{key}={toml(value)}" for key, value in changes]
        if parse(recipes.override(table, settings), name) == wanted:
            found.append((name, changes))
    return found


def toml(value: Any) -> str:
    """Return a value as inline TOML; tables without items that are None."""
    if isinstance(value, Mapping):
        items = (f"{_key(k)} = {toml(x)}" for k, x in value.items() if x is not None)
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
