"""`fcn-jax recipes`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fcn_jax.cli.arguments import add_command


def add_commands(commands: Any) -> None:
    """Add the commands."""
    recipes = add_command(commands, "recipes", "List and print the shipped recipes.")
    subcommands = recipes.add_subparsers(title="commands", required=True, metavar="COMMAND")
    about = "List the shipped recipes: data, model, and the score and time that were measured."
    add_command(subcommands, "list", about, _list)
    about = "Print a shipped recipe, to read it or to change a copy."
    show = add_command(subcommands, "show", about, _show)
    show.add_argument("name", metavar="NAME", help="Name of a shipped recipe (recipes list).")
    about = "Write it to this .toml file instead; fcn-jax train FILE then trains with it."
    show.add_argument("-o", "--output", metavar="FILE", type=Path, help=about)


def _list(args: argparse.Namespace) -> int:
    import tomllib

    from fcn_jax import recipes

    rows = [("NAME", "DATA", "MODEL", "SCORE", "TIME")]
    for name in recipes.names():
        text = recipes.text_of(name)
        table, header = tomllib.loads(text), recipes.header_of(text)
        parts = (table["model"]["backbone"], table["model"]["head"])
        model = " ".join(part.rpartition(":")[2] for part in parts)
        measured = (_short(header[field]) for field in ("score", "time"))
        rows.append((name, table["data"]["dataset"], model, *measured))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def _short(field: str) -> str:
    """A field of a recipe's header for a list: without remarks in parentheses."""
    return "-" if field.startswith("not measured") else field.partition(" (")[0]


def _show(args: argparse.Namespace) -> int:
    from fcn_jax import recipes
    from fcn_jax.errors import ConfigError, WriteError
    from fcn_jax.runtime import atomic, destination

    text = recipes.text_of(args.name)
    path = args.output
    if path is None:
        print(text, end="")
        return 0
    if path.suffix != ".toml":
        raise ConfigError(f"-o {path}: the name of a recipe file must end in .toml")
    if path.exists():
        raise WriteError(f"{path}: exists and is not replaced; name another file")
    destination.check_new(path)
    atomic.write_text(path, text)
    print(f"{path}: a copy of the recipe {args.name}. Train with it: fcn-jax train {path}")
    return 0
