"""`fcn-jax convert` and `fcn-jax export`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcn_jax.cli.arguments import (
    add_average,
    add_checkpoint,
    add_command,
    add_model,
    add_weights,
    model_changes,
    size,
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
    about = (
        "Compare the converted model with PyTorch on images of this size (default: 320x480) and "
        "store the report in the checkpoint as verify.json. Nothing is written if the two differ."
    )
    convert.add_argument(
        "--verify", metavar="HxW", type=size, nargs="?", const=(320, 480), help=about
    )
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

    choice = {"reinit": args.reinit, "drop": args.drop, "key": args.key}
    changes = model_changes(args)

    def prove(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        from fcn_jax.pytorch import files
        from fcn_jax.runtime.progress import Progress
        from fcn_jax.verify import verify_model

        with Progress(f"verify {args.model}") as progress:
            report = verify_model(
                args.model,
                weights=args.source,
                sizes=[args.verify],
                progress=lambda done, total, what: progress.update(done, max(done, total), what),
                **choice,
                **changes,
            )
        if not report.equal:
            raise _NotEqualError(report)
        print(report.verdict)
        report.weights = {**report.weights, "arrays_sha256": files.digest(arrays)}
        return report.to_dict()

    try:
        report = convert_file(
            args.source,
            args.model,
            args.output,
            prove=prove if args.verify else None,
            **choice,
            **changes,
        )
    except _NotEqualError as error:
        print(f"{error}\n{args.output}: not written, because the converted model differs")
        return 1
    print(f"{args.output}: {report}")
    return 0


class _NotEqualError(Exception):
    """The converted model is not equal to PyTorch's; the message is the report."""


def _export(args: argparse.Namespace) -> int:
    from fcn_jax.convert.command import export_file

    report = export_file(
        args.checkpoint, args.output, key_format=args.key_format, weights=args.weights
    )
    print(f"{args.output}: {report}")
    return 0
