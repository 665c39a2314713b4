"""`fcn-jax convert` and `fcn-jax export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fcn_jax.cli.arguments import (
    add_average,
    add_checkpoint,
    add_command,
    add_model,
    add_weights,
    model_changes,
)


def add_commands(commands: Any) -> None:
    """Add the commands."""
    convert = add_command(commands, "convert", "Convert PyTorch weights to a checkpoint.", _convert)
    convert.add_argument(
        "source",
        metavar="FILE|NAME",
        help="Weights: a file (.pth, .safetensors), or the name of published weights, such as "
        "IMAGENET1K_V1.",
    )
    add_model(convert, head="none, the backbone alone")
    add_weights(convert)
    _add_output(convert, "DIR", "Directory to write. It must be missing or empty.")

    about = "Write a checkpoint as a PyTorch state dict for load_state_dict."
    export = add_command(commands, "export", about, _export)
    add_checkpoint(export)
    add_average(export)
    about = "Names of the tensors: torchvision (default), d2l, or a format of a plugin."
    export.add_argument("--key-format", metavar="FORMAT", default="torchvision", help=about)
    about = "File to write, .pth or .safetensors. An existing file is never replaced."
    _add_output(export, "FILE", about)


def _add_output(parser: Any, metavar: str, help: str) -> None:
    parser.add_argument("-o", "--output", metavar=metavar, type=Path, required=True, help=help)


def _convert(args: argparse.Namespace) -> int:
    from fcn_jax.convert.command import convert_file

    report = convert_file(
        args.source,
        args.model,
        args.output,
        **model_changes(args),
        reinit=args.reinit,
        drop=args.drop,
        key=args.key,
    )
    print(f"{args.output}: {report}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from fcn_jax.convert.command import export_file

    report = export_file(
        args.checkpoint, args.output, key_format=args.key_format, weights=args.weights
    )
    print(f"{args.output}: {report}")
    return 0
