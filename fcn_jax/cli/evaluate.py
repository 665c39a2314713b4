"""`fcn-jax eval` and `fcn-jax predict`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import Any

from fcn_jax.cli.arguments import add_command, add_trained, directory
from fcn_jax.errors import ConfigError


def add_commands(commands: Any) -> None:
    """Add the commands."""
    about = "Score a trained model on all whole images of a split."
    evaluate = add_command(commands, "eval", about, _eval)
    add_trained(evaluate)
    add = evaluate.add_argument
    add("--data", metavar="DIR", help="Folder of the dataset (default: that of the run).")
    add("--dataset", metavar="NAME", help="Registered dataset (default: that of the run).")
    add("--split", metavar="NAME", help="Split to score (default: the run's validation split).")
    add("--json", action="store_true", help="Print one JSON object.")

    about = "Segment images. For each, write STEM.png (an indexed mask) and STEM_overlay.png."
    predict = add_command(commands, "predict", about, _predict)
    add_trained(predict)
    add = predict.add_argument
    add("images", metavar="IMAGE", nargs="+", help="Image files, folders or glob patterns.")
    about = "Folder to write to (default: predictions)."
    add("-o", "--output", metavar="DIR", type=directory, default="predictions", help=about)
    about = "Replace results of an earlier prediction. Other files are never replaced."
    add("--overwrite", action="store_true", help=about)


def _eval(args: argparse.Namespace) -> int:
    from fcn_jax.eval.evaluate import evaluate_checkpoint
    from fcn_jax.runtime import json_text

    outcome = evaluate_checkpoint(
        args.checkpoint,
        dataset=args.dataset,
        data=args.data,
        split=args.split,
        value_range=_value_range(args),
        exact_sizes=args.exact_sizes,
        weights=args.weights,
    )
    if args.json:
        for note in outcome.notes:
            print(f"note: {note}", file=sys.stderr)
        _print(json_text.dumps(outcome.to_dict()))
    else:
        _print(str(outcome))
    return 0


def _predict(args: argparse.Namespace) -> int:
    from fcn_jax.eval.predict import predict_files

    for mask, overlay in predict_files(
        args.checkpoint,
        args.images,
        args.output,
        overwrite=args.overwrite,
        value_range=_value_range(args),
        exact_sizes=args.exact_sizes,
        weights=args.weights,
        say=lambda line: print(f"note: {line}", file=sys.stderr),
    ):
        _print(f"{mask} {overlay}")
    return 0


def _value_range(args: argparse.Namespace) -> tuple[float, float] | None:
    if args.value_range is None:
        return None
    low, high = args.value_range
    if not -math.inf < low < high < math.inf:
        raise ConfigError(
            f"--value-range {low:g} {high:g}: give two finite numbers, the smaller one first"
        )
    return low, high


def _print(text: str) -> None:
    """Print, with escapes for characters that the output cannot encode.

    A reader that closes the pipe does not end the command.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
