"""`fcn-jax verify`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fcn_jax.cli.arguments import Commands, add_model, add_options, add_reinit, size
from fcn_jax.errors import FcnJaxError


def add_commands(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "verify",
        "Show that a model computes the same function as its PyTorch reference, or name the first "
        "layer that does not.",
        _verify,
    )
    add_model(parser, head="fcn32s")
    add_options(parser, "backbone", "head", "aux-head")
    parser.add_argument(
        "--weights",
        metavar="FILE|NAME",
        help="Weights of both sides: a file, or the name of published weights (default: random).",
    )
    add_reinit(parser)
    parser.add_argument(
        "--size",
        metavar="HxW",
        type=size,
        action="append",
        help="Height and width of the images in pixels; may be repeated (default: 320x480).",
    )
    parser.add_argument(
        "--batch", metavar="N", type=int, default=2, help="Images per batch (default: 2)."
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="Precision to compare (default: float32).",
    )
    parser.add_argument(
        "--grad", action="store_true", help="Compare the gradient of every parameter, too."
    )
    parser.add_argument(
        "--train-steps",
        metavar="N",
        type=int,
        default=0,
        help="Compare a training run of N steps, too (default: 0, none).",
    )
    parser.add_argument(
        "--train-lr",
        metavar="LR",
        type=float,
        default=0.01,
        help="First learning rate of that run (default: 0.01). Models without batch normalization "
        "need a lower one.",
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="Random seed (default: 0)."
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="Also write the report to this .html or .json file; may be repeated.",
    )


def _verify(args: argparse.Namespace) -> int:
    from fcn_jax.recipes import override
    from fcn_jax.runtime.progress import Progress
    from fcn_jax.verify import html, verify_model

    for path in args.report:
        html.check_path(path)
    try:
        with Progress(f"verify {args.model}") as progress:
            report = verify_model(
                args.model,
                weights=args.weights,
                reinit=args.reinit,
                head=args.head,
                aux_head=args.aux_head,
                num_classes=args.num_classes,
                output_stride=args.output_stride,
                backbone_options=override({}, args.backbone_option, "--backbone-option"),
                head_options=override({}, args.head_option, "--head-option"),
                aux_head_options=override({}, args.aux_head_option, "--aux-head-option"),
                sizes=args.size or [(320, 480)],
                batch=args.batch,
                dtype=args.dtype,
                grad=args.grad,
                train_steps=args.train_steps,
                train_lr=args.train_lr,
                seed=args.seed,
                progress=lambda done, total, what: progress.update(done, max(done, total), what),
            )
    except FcnJaxError:
        raise
    except Exception as error:  # status 1 would mean "not equal"; the model did not even run
        if args.debug:
            raise
        raise FcnJaxError(
            f"{args.model} could not be run: {type(error).__name__}: {error} (--debug shows where)"
        ) from error
    print(report)
    for path in args.report:
        html.write(report, path)
    return 0 if report.equal else 1
