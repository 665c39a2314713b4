"""`fcn-jax save-pretrained` and `fcn-jax push-to-hub`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fcn_jax.cli.arguments import add_average, add_checkpoint, add_command


def add_commands(commands: Any) -> None:
    """Add the commands."""
    about = (
        "Write a model as a portable directory: config.json, model.safetensors and a model card."
    )
    save = add_command(commands, "save-pretrained", about, _save)
    add_checkpoint(save)
    _add_options(save)
    save.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        required=True,
        help="Directory to write. It must be missing or empty.",
    )

    about = "Publish a model on the Hugging Face Hub."
    push = add_command(commands, "push-to-hub", about, _push)
    add_checkpoint(push)
    push.add_argument("repo_id", metavar="ORGANIZATION/NAME", help="Id of the model on the hub.")
    _add_options(push)
    about = "Make a new repository private."
    push.add_argument("--private", action="store_true", help=about)
    about = "Message of the commit."
    push.add_argument("--message", default="Upload a model of fcn-jax", help=about)


def _add_options(parser: Any) -> None:
    add_average(parser)
    about = "License of the weights, as an SPDX identifier such as mit."
    parser.add_argument("--license", metavar="ID", help=about)


def _save(args: argparse.Namespace) -> int:
    from fcn_jax.pretrained import save_pretrained

    folder = save_pretrained(
        args.checkpoint, args.output, weights=args.weights, license=args.license
    )
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(f"{folder}: {names}")
    return 0


def _push(args: argparse.Namespace) -> int:
    from fcn_jax.pretrained import push_to_hub

    commit = push_to_hub(
        args.checkpoint,
        args.repo_id,
        weights=args.weights,
        license=args.license,
        private=args.private,
        message=args.message,
    )
    print(commit)
    return 0
