"""`fcn-jax convert` and `fcn-jax export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fcn_jax.cli.arguments import Commands, add_model, add_options, add_weights


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    convert = commands.add("convert", "Convert PyTorch weights to a checkpoint.", _convert)
    convert.add_argument(
        "source",
        metavar="FILE|NAME",
        help="Weights: a file (.pth, .safetensors), or the name of published weights, such as "
        "IMAGENET1K_V1.",
    )
    add_model(convert, head="none, the backbone alone")
    add_options(convert, "backbone", "head", "aux-head")
    add_weights(convert)
    convert.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        required=True,
        help="Directory to write. It must be missing or empty.",
    )

    export = commands.add(
        "export", "Write a checkpoint as a PyTorch state dict for load_state_dict.", _export
    )
    export.add_argument(
        "checkpoint",
        metavar="RUN|CHECKPOINT",
        help="Run directory (its best checkpoint is used), or one checkpoint.",
    )
    export.add_argument(
        "--key-format",
        metavar="FORMAT",
        default="torchvision",
        help="Names of the tensors: torchvision (default), d2l, or a format of a plugin.",
    )
    export.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        required=True,
        help="File to write, .pth or .safetensors. An existing file is never replaced.",
    )


def _convert(args: argparse.Namespace) -> int:
    from fcn_jax.convert.command import convert_file
    from fcn_jax.recipes import override

    report = convert_file(
        args.source,
        args.model,
        args.output,
        head=args.head,
        aux_head=args.aux_head,
        num_classes=args.num_classes,
        output_stride=args.output_stride,
        backbone_options=override({}, args.backbone_option, "--backbone-option"),
        head_options=override({}, args.head_option, "--head-option"),
        aux_head_options=override({}, args.aux_head_option, "--aux-head-option"),
        reinit=args.reinit,
        drop=args.drop,
        key=args.key or "",
    )
    print(f"{args.output}: {report}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from fcn_jax.convert.command import export_file

    print(f"{args.output}: {export_file(args.checkpoint, args.output, key_format=args.key_format)}")
    return 0
