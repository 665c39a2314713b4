"""`fcn-jax verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fcn_jax.cli.arguments import add_command, add_model, add_reinit, model_changes, size
from fcn_jax.errors import FcnJaxError


def add_commands(commands: Any) -> None:
    """Add the command."""
    about = (
        "Show that a model computes the same function as its PyTorch reference, or name the first "
        "layer that does not."
    )
    parser = add_command(commands, "verify", about, _verify)
    add_model(parser, head="fcn32s")
    add = parser.add_argument
    about = "Weights of both sides: a file, or the name of published weights (default: random)."
    add("--weights", metavar="FILE|NAME", help=about)
    add_reinit(parser)
    about = "Height and width of the images in pixels; may be repeated (default: 320x480)."
    add("--size", metavar="HxW", type=size, action="append", help=about)
    add("--batch", metavar="N", type=int, default=2, help="Images per batch (default: 2).")
    about = "Precision to compare (default: float32)."
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help=about)
    add("--grad", action="store_true", help="Compare the gradient of every parameter, too.")
    about = "Compare a training run of N steps, too (default: 0, none)."
    add("--train-steps", metavar="N", type=int, default=0, help=about)
    about = (
        "First learning rate of that run (default: 0.01). Models without batch normalization need "
        "a lower one."
    )
    add("--train-lr", metavar="LR", type=float, default=0.01, help=about)
    about = (
        "Also plant faults, such as swapped tensors, one at a time, and count those that the "
        "comparison catches; with N, at most N faults of each kind."
    )
    add("--mutate", metavar="N", type=int, nargs="?", default=False, const=True, help=about)
    add("--seed", metavar="N", type=int, default=0, help="Random seed (default: 0).")
    about = "Also write the report to this .html or .json file; may be repeated."
    add("--report", metavar="FILE", type=Path, action="append", default=[], help=about)


def _verify(args: argparse.Namespace) -> int:
    from fcn_jax.runtime.progress import Progress
    from fcn_jax.verify import html, verify_model

    for path in args.report:
        html.check_path(path)
    same = ("weights", "reinit", "batch", "dtype", "grad", "train_steps", "train_lr")
    same += ("mutate", "seed")
    try:
        with Progress(f"verify {args.model}") as progress:
            report = verify_model(
                args.model,
                sizes=args.size or [(320, 480)],
                progress=lambda done, total, what: progress.update(done, max(done, total), what),
                **{name: getattr(args, name) for name in same},
                **model_changes(args),
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
