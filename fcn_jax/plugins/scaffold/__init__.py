"""`fcn-jax plugins new`: writes a distribution with one plugin, which passes its own tests.

The templates are real code, linted and type-checked with the rest. `yourname` stands for the
plugin's name and `yourkind` for "backbone", "head" or "dataset". To support any name, classes have
another word after it (`YournameNet`), all other definitions are private, and nothing in capitals is
imported.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from importlib.resources.abc import Traversable
from pathlib import Path

from fcn_jax.errors import ConfigError
from fcn_jax.plugins import registry
from fcn_jax.plugins.entry import plural
from fcn_jax.runtime import atomic, destination

KINDS = ("backbone", "dataset", "head", "loss")
"""The kinds of plugins that have templates."""

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def write(name: str, kind: str, output: Path | None = None) -> Path:
    """Write a plugin distribution, all or nothing.

    Args:
        name: what it will be registered under: lower-case words of letters and digits, joined by
            underscores. The distribution is called `fcn-jax-NAME`, with hyphens, and the package
            `fcn_jax_NAME`.
        kind: one of `KINDS`. One distribution starts with one plugin; it can hold any number.
        output: the folder to make; None makes `fcn-jax-NAME` in the current one.

    Returns:
        The folder.

    Raises:
        ConfigError: the name is malformed or taken, or reads as a value in a recipe, as `true`
            does.
        WriteError: the folder exists or cannot be written.
    """
    _check_name(name, kind)
    words = {
        "fcn-jax-yourname": distribution_name(name),
        "YOURNAME": name.upper(),
        "Yourname": "".join(word.capitalize() for word in name.split("_")),
        "yourname": name,
        "your kind": kind,
        "yourkinds": plural(kind),
        "yourkind": kind,
    }

    # In one pass: a name may hold any of the words.
    pattern = re.compile("|".join(words))

    def filled(text: str) -> str:
        return pattern.sub(lambda match: words[match[0]], text)

    folder = output or Path(distribution_name(name))
    destination.check_new(folder)
    with atomic.new_folder(folder) as temporary:
        for path, template in _templates(kind):
            target = temporary / filled(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(filled(template.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def distribution_name(name: str) -> str:
    """What the distribution of a plugin of that name is called."""
    return f"fcn-jax-{name.replace('_', '-')}"


def _check_name(name: str, kind: str) -> None:
    if not _NAME.fullmatch(name):
        words = re.findall(
            r"[a-z0-9]+",
            re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().removeprefix("fcn-jax-"),
        )
        proposal = "_".join(words).lstrip("0123456789_")
        hint = f", such as '{proposal}'" if proposal else ", such as 'mynet'"
        raise ConfigError(
            f"'{name}' is not a valid name of a plugin: use lower-case letters and digits, a "
            f"letter first, and join words by '_'{hint}"
        )
    with contextlib.suppress(tomllib.TOMLDecodeError):
        value = tomllib.loads(f"value = {name}")["value"]
        raise ConfigError(
            f"'{name}' is not a valid name of a plugin: `--set KEY={name}` sets the value "
            f"{value!r}; use another name"
        )
    plugins = registry.default()
    owners = [entry.distribution for entry in plugins.entries(plural(kind)) if entry.name == name]
    if owners:
        raise ConfigError(
            f"a {kind} named '{name}' is already registered, by {' and '.join(owners)}; use "
            "another name"
        )
    try:
        found = metadata.distribution(distribution_name(name))
    except metadata.PackageNotFoundError:
        return
    raise ConfigError(
        f"a distribution {found.name} is already installed; use another name, or uninstall it"
    )


def _templates(kind: str) -> Iterator[tuple[str, Traversable]]:
    """The files that every plugin has, then those of its kind, by path in the distribution."""
    root = importlib.resources.files("fcn_jax.plugins.scaffold") / "templates"
    for part in ("common", kind):
        yield from _files(root / part)


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_file():
            yield prefix + item.name, item
        elif item.name != "__pycache__":
            yield from _files(item, f"{prefix}{item.name}/")
