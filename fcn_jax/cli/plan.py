"""`fcn-jax plan`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fcn_jax.cli.arguments import add_command, add_repeated, count


def add_commands(commands: Any) -> None:
    """Add the command."""
    about = (
        "Say how much memory and time a training step needs at least, and how efficient many "
        "devices are, without the data and the devices."
    )
    parser = add_command(
        commands,
        "plan",
        about,
        _plan,
        "All figures are bounds: FLOPs and bytes of the traced step against the numbers of "
        "datasheets. docs/planning.md says what they leave out.",
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE|FILE.toml", help="Shipped recipe, or recipe file.")
    about = "Kind of the devices, such as H100 or TPUv5e; an unknown one lists all."
    add("--kind", metavar="KIND", required=True, help=about)
    add("--devices", metavar="N", type=count, default=1, help="Their number (default: 1).")
    about = "Number of classes (default: that of the recipe's dataset)."
    add("--num-classes", metavar="N", type=count, help=about)
    about = "Change a setting, such as data.batch_size=64 (fcn-jax settings)."
    add_repeated(parser, "--set", "KEY=VALUE", about)
    add("--json", metavar="FILE", type=Path, help="Also write all figures to this file.")
    about = "Also compile the step, which may take minutes, and show XLA's own figures: for the "
    about += "TPUs themselves if libtpu is installed, otherwise for the device at hand."
    add("--compile", action="store_true", help=about)


def _plan(args: argparse.Namespace) -> int:
    from fcn_jax import recipes
    from fcn_jax.config import parse
    from fcn_jax.plan import kinds

    kind = kinds.find(args.kind)
    table = recipes.override(recipes.read_recipe(args.recipe), args.set)
    config = parse(table, args.recipe)
    from fcn_jax.plan import plan, text, xla

    if not args.compile or xla.uses_libtpu(kind.platform):
        import jax

        # Nothing is computed on a device, so none is taken.
        jax.config.update("jax_platforms", "cpu")
    found = plan.plan(config, kind, args.devices, args.num_classes)
    print(text.text(found, args.recipe, config))
    figures = found.to_dict()
    if args.compile:
        compiled = xla.figures(config, found, args.num_classes)
        print(f"\n{xla.text(compiled)}")
        figures["xla"] = compiled
    if args.json:
        from fcn_jax.runtime import atomic

        atomic.write_json(args.json, figures)
    return 0
