"""`fcn-jax verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fcn_jax.cli.arguments import (
    add_command,
    add_license,
    add_model,
    add_reinit,
    add_repeated,
    model_changes,
    size,
)
from fcn_jax.errors import ConfigError, FcnJaxError, listing


def add_commands(commands: Any) -> None:
    """Add the command."""
    about = (
        "Show that a model computes the same function as its PyTorch reference, or name the first "
        "layer that does not. With --check, say whether earlier reports still hold."
    )
    parser = add_command(commands, "verify", about, _verify)
    about = "Registered model or backbone (fcn-jax plugins list); or a trained model: a run, "
    about += "checkpoint, portable directory, or id of a model on the Hugging Face Hub."
    add_model(parser, head="fcn32s", required=False, trained=about)
    add = parser.add_argument
    about = "Weights of both sides: a file, or the name of published weights (default: random)."
    add("--weights", metavar="FILE|NAME", help=about)
    add_reinit(parser)
    add_license(parser)
    about = "Height and width of the images in pixels; may be repeated (default: 320x480)."
    add("--size", metavar="HxW", type=size, action="append", help=about)
    add("--batch", metavar="N", type=int, default=2, help="Images per batch (default: 2).")
    about = "Precision to compare (default: float32)."
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help=about)
    add("--grad", action="store_true", help="Compare the gradient of every parameter, too.")
    about = "Compare N training steps, too (default: 0, none)."
    add("--train-steps", metavar="N", type=int, default=0, help=about)
    about = (
        "synced: every step starts from the same values on both sides (default). free: each side "
        "goes on from its own. seeds: the distribution of the errors of free runs."
    )
    add("--train-mode", choices=["synced", "free", "seeds"], default="synced", help=about)
    about = "Optimizer of these steps; adamw-ema also averages the weights; may be repeated "
    about += "(default: sgd)."
    add("--optimizer", choices=["sgd", "adamw", "adamw-ema"], action="append", help=about)
    about = (
        "Learning rate of these steps (default: 0.1 with sgd, 0.001 with adamw). Models without "
        "batch normalization need a lower one."
    )
    add("--train-lr", metavar="LR", type=float, help=about)
    about = (
        "Also plant faults, such as swapped tensors, one at a time, and count those that the "
        "comparison catches; with N, at most N faults of each kind."
    )
    add("--mutate", metavar="N", type=int, nargs="?", default=False, const=True, help=about)
    about = "Precision of JAX's matrix products and convolutions (default: highest, float32)."
    add("--matmul-precision", choices=["highest", "high", "default"], default="highest", help=about)
    add("--seed", metavar="N", type=int, default=0, help="Random seed (default: 0).")
    about = "Also run PyTorch's network by torchax, if it is installed: a third opinion."
    add("--torchax", action="store_true", help=about)
    about = "Also write the report to this .html or .json file; may be repeated."
    add("--report", metavar="FILE", type=Path, action="append", default=[], help=about)
    about = (
        "Say whether this .json report, or that of a run or checkpoint, still holds for the code, "
        "versions and weights at hand, without a comparison; may be repeated."
    )
    add_repeated(parser, "--check", "REPORT|CHECKPOINT", about)


def _verify(args: argparse.Namespace) -> int:
    if args.check:
        return _check(args)
    if not args.model:
        raise ConfigError("name a model to verify (--model NAME), or a report (--check REPORT)")
    from fcn_jax.runtime.progress import Progress
    from fcn_jax.verify import html, verify_model

    for path in args.report:
        html.check_path(path)
    comparison = ("weights", "reinit", "batch", "dtype", "grad", "mutate", "seed")
    training = ("train_steps", "train_mode", "train_lr")
    try:
        with Progress(f"verify {args.model}") as progress:
            report = verify_model(
                args.model,
                sizes=args.size or [(320, 480)],
                third_opinion=args.torchax,
                matmul_precision=args.matmul_precision,
                train_recipes=args.optimizer or ["sgd"],
                progress=lambda done, total, what: progress.update(done, max(done, total), what),
                **{name: getattr(args, name) for name in comparison + training},
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


def _check(args: argparse.Namespace) -> int:
    """Print one line about each report. The status is 1 if one does not hold."""
    from fcn_jax.verify import evidence
    from fcn_jax.verify.report import Report

    if args.model or args.report:
        raise ConfigError("--check compares nothing, so it takes neither --model nor --report")
    found, problems = [], []
    for path in map(Path, args.check):
        try:
            file = evidence.find(path)
            report = Report.read(file)
            found.append((path, report, evidence.differences(report.to_dict(), path)))
        except FcnJaxError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    for path, report, differences in found:
        if differences:
            print(f"{path}: no longer holds: {listing(differences)}")
        else:
            print(f"{path}: holds: {report.verdict}")
    return int(any(differences or not report.equal for _, report, differences in found))
