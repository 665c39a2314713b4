"""`fcn-jax plugins list`, `check` and `new`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fcn_jax.cli.arguments import add_command, add_repeated, seconds
from fcn_jax.errors import ConfigError


def add_commands(commands: Any) -> None:
    """Add the commands."""
    group = add_command(commands, "plugins", "List, check and write plugins.")
    actions = group.add_subparsers(title="actions", required=True, metavar="ACTION")

    about = "List the installed plugins with their distributions."
    show = add_command(actions, "list", about, _list)
    about = "Import each plugin, in a separate process."
    show.add_argument("--check", action="store_true", help=about)
    _timeout(show)

    about = "Check one plugin against the contract: what it declares and what it does."
    check = add_command(actions, "check", about, _check)
    add = check.add_argument
    about = "Registered backbone, head, model, dataset or loss: NAME or DISTRIBUTION:NAME."
    add("name", metavar="NAME", help=about)
    add_repeated(check, "--set", "OPTION=VALUE", "Set an option of the plugin, such as width=64.")
    add("--data", metavar="DIR", type=Path, help="Folder of a dataset.")
    about = "Split of a dataset; may be repeated (default: train and val)."
    add_repeated(check, "--split", "NAME", about)
    about = "Kind of plugin, if several have this name (default: check each)."
    add("--kind", choices=["backbone", "head", "model", "dataset", "loss"], help=about)
    _timeout(check)

    about = "Write a distribution with one plugin, which passes its own tests."
    new = add_command(actions, "new", about, _new)
    add = new.add_argument
    about = "Name to register the plugin under: lower-case letters, digits and underscores."
    add("name", metavar="NAME", help=about)
    kind = new.add_mutually_exclusive_group()
    for word in ("backbone", "head", "dataset", "loss"):
        default = " (default)" if word == "backbone" else ""
        about = f"Write a {word}{default}."
        kind.add_argument(f"--{word}", dest="kind", action="store_const", const=word, help=about)
    new.set_defaults(kind="backbone")
    about = "Folder to make (default: fcn-jax-NAME)."
    add("-o", "--output", metavar="DIR", type=Path, help=about)


def _timeout(parser: Any) -> None:
    about = "Longest time that the import of a plugin may take (default: 60)."
    parser.add_argument("--timeout", metavar="SECONDS", type=seconds, default=60.0, help=about)


def _list(args: argparse.Namespace) -> int:
    from fcn_jax.plugins import isolation, registry

    plugins = registry.default()
    entries = plugins.entries()
    if not entries:
        raise ConfigError(
            "no plugins are registered, not even the built-in ones: install fcn-jax instead of "
            "only putting it on the path"
        )
    faults = isolation.check_all(entries, args.timeout) if args.check else {}
    width = max(len(entry.name) for entry in entries)
    broken = 0
    for entry in entries:
        problems = "; ".join(filter(None, (faults.get(entry), plugins.conflict(entry))))
        broken += bool(problems)
        state = f"  BROKEN: {problems}" if problems else "  ok" if args.check else ""
        where = f"{entry.distribution} {entry.version}"
        print(f"{entry.kind:<10} {entry.name:<{width}}  {where}{state}")
    for where, problem in registry.faults().items():
        broken += 1
        print(f"{where}  BROKEN: {problem}")
    return 1 if args.check and broken else 0


def _check(args: argparse.Namespace) -> int:
    from fcn_jax.plugins.entry import plural, singular
    from fcn_jax.plugins.testing.command import check_plugin, registered
    from fcn_jax.recipes import override

    options = override({}, args.set)
    entries = registered(args.name, args.kind and plural(args.kind))
    given = {"--set": args.set, "--data": args.data is not None, "--split": args.split}
    if len(entries) > 1 and any(given.values()):
        surplus = ", ".join(option for option, value in given.items() if value)
        choices = " or ".join(f"--kind {singular(entry.kind)}" for entry in entries)
        raise ConfigError(
            f"'{args.name}' names plugins of several kinds, and {surplus} applies to one of them: "
            f"add {choices}"
        )
    kept = True
    for entry in entries:
        print(entry)
        for finding in check_plugin(
            entry, options=options, data=args.data, splits=args.split, timeout=args.timeout
        ):
            print(finding, flush=True)
            kept &= finding.kept
    return 0 if kept else 1


def _new(args: argparse.Namespace) -> int:
    from fcn_jax.plugins.scaffold import write

    folder = write(args.name, args.kind, args.output)
    print(f"{folder}: a {args.kind} named '{args.name}'. Install and test it:")
    print(f"  pip install -e '{folder}[test]'")
    print(f"  python -m pytest {folder}")
    data = " --data DIR" if args.kind == "dataset" else ""
    print(f"  fcn-jax plugins check {args.name}{data}")
    return 0
