"""`fcn-jax data check` and `fcn-jax data browse`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fcn_jax.cli.arguments import add_command, add_repeated


def add_commands(commands: Any) -> None:
    """Add the commands."""
    group = add_command(commands, "data", "Look at a dataset before training.")
    actions = group.add_subparsers(title="actions", required=True, metavar="ACTION")

    about = "Read every image and mask of every split, and report all problems."
    epilog = "Exit status: 0 no errors; 1 errors are reported; 2 there is nothing to check."
    check = add_command(actions, "check", about, _check, epilog)
    _add_data(check)
    check.add_argument("--json", metavar="FILE", type=Path, help="Also write the report as JSON.")

    about = "Write an HTML page of images, masks, and training images after augmentation."
    browse = add_command(actions, "browse", about, _browse)
    _add_data(browse)
    add = browse.add_argument
    about = "File to write (default: contact_sheet.html)."
    add("-o", "--output", metavar="FILE", type=Path, default="contact_sheet.html", help=about)
    add("--split", metavar="NAME", help="Split to show (default: the split that is trained on).")
    add("--count", metavar="N", type=int, default=24, help="Number of images (default: 24).")
    about = "Training images of each image (default: 3)."
    add("--draws", metavar="N", type=int, default=3, help=about)
    about = "Seed of the choice of images and of the augmentation (default: 0)."
    add("--seed", metavar="N", type=int, default=0, help=about)


def _add_data(parser: Any) -> None:
    about = "Shipped recipe, recipe file, or folder of a dataset."
    parser.add_argument("recipe", metavar="RECIPE|FILE.toml|DIR", help=about)
    parser.add_argument("--data", metavar="DIR", help="Folder of the recipe's dataset.")
    about = "Change a setting, such as data.dataset=folder (fcn-jax settings)."
    add_repeated(parser, "--set", "KEY=VALUE", about)


def _check(args: argparse.Namespace) -> int:
    from fcn_jax.explore import check, opening, text
    from fcn_jax.runtime import json_text
    from fcn_jax.runtime.atomic import write_text

    if args.json:
        check.check_path(args.json)
    report = check.check(opening.settings(args.recipe, data=args.data, changes=args.set))
    if args.json:
        write_text(args.json, json_text.dumps(report.to_dict(), indent=2) + "\n")
    print(text.text(report), end="")
    return 0 if report.ok else 1


def _browse(args: argparse.Namespace) -> int:
    from fcn_jax.explore import browse, opening

    failures = browse.browse(
        opening.settings(args.recipe, data=args.data, changes=args.set),
        args.output,
        split=args.split,
        count=args.count,
        seed=args.seed,
        draws=args.draws,
    )
    for failure in failures:
        print(f"note: {failure}", file=sys.stderr)
    print(args.output)
    return 0
