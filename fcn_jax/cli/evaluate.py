"""`fcn-jax eval` and `fcn-jax predict`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import Any

from fcn_jax.cli.arguments import add_command, add_processes, add_trained, directory, size
from fcn_jax.errors import ConfigError


def add_commands(commands: Any) -> None:
    """Add the commands."""
    about = "Score a trained model on a split (see docs/evaluation.md)."
    evaluate = add_command(commands, "eval", about, _eval)
    add_trained(evaluate)
    add_processes(evaluate)
    add = evaluate.add_argument
    add("--data", metavar="DIR", help="Folder of the dataset (default: that of the run).")
    add("--dataset", metavar="NAME", help="Registered dataset (default: that of the run).")
    add("--split", metavar="NAME", help="Split to score (default: the run's validation split).")
    about = "Also compute boundary_iou or ece; several with commas (default: as in the recipe)."
    add("--metrics", metavar="NAMES", type=_names, help=about)
    _add_protocol(evaluate, "resize, multiscale, sliding or d2l", predicts=False)
    add("--json", action="store_true", help="Print one JSON object.")

    about = "Segment images. For each, write STEM.png (an indexed mask) and STEM_overlay.png."
    predict = add_command(commands, "predict", about, _predict)
    add_trained(predict)
    add_processes(predict)
    add = predict.add_argument
    add("images", metavar="IMAGE", nargs="+", help="Image files, folders or glob patterns.")
    about = "Folder to write to (default: predictions)."
    add("-o", "--output", metavar="DIR", type=directory, default="predictions", help=about)
    about = "Replace results of an earlier prediction. Other files are never replaced."
    add("--overwrite", action="store_true", help=about)
    _add_protocol(predict, "resize, multiscale or sliding", predicts=True)


def _add_protocol(parser: Any, others: str, *, predicts: bool) -> None:
    """Add the arguments of evaluation protocols; those that only change scores if not `predicts`.

    Their names are those of the section `eval` of recipes.
    """
    add = parser.add_argument_group(
        "protocol", "Defaults are those of the run's recipe."
    ).add_argument
    about = f"Which pixels the network sees: native (whole images at their own size), {others}."
    add("--protocol", metavar="NAME", help=about)
    add("--size", metavar="HxW", type=size, help="Of resize: size that the network sees.")
    add("--window", metavar="HxW", type=size, help="Of sliding: size of a window.")
    about = "Of sliding: share of a window that its neighbor covers, such as 0.5."
    add("--overlap", metavar="SHARE", type=float, help=about)
    about = "Of sliding: weights of a window's pixels, gaussian or uniform."
    add("--blend", metavar="NAME", help=about)
    about = "Of sliding: average probabilities or logits."
    add("--average", metavar="NAME", help=about)
    about = "Of multiscale: factors of the image's size, such as 0.5,0.75,1.0."
    add("--scales", metavar="LIST", type=_numbers, help=about)
    about = "Of multiscale and sliding: also run mirrored images."
    add("--flip", action=argparse.BooleanOptionalAction, help=about)
    if not predicts:
        about = "Of resize: score native pixels, or resized ground truth."
        add("--labels", metavar="NAME", help=about)
        add("--crop", metavar="HxW", type=size, help="Of d2l: size of the random crop.")
        about = "Of d2l: leave out images that do not fill a batch of N; 1 keeps all."
        add("--drop-last", metavar="N", type=int, help=about)
        add("--seed", metavar="N", type=int, help="Of d2l: seed of the random crops.")
    about = "Images of one size, or windows, that a device computes together."
    add("--batch-size", metavar="N", type=int, help=about)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the protocol that were given."""
    from fcn_jax.eval.protocols import SETTING_NAMES

    return {k: v for k in SETTING_NAMES if (v := getattr(args, k, None)) is not None}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        message = f"invalid list '{text}', expected numbers with commas, such as 0.5,1.0"
        raise argparse.ArgumentTypeError(message) from None


def _eval(args: argparse.Namespace) -> int:
    from fcn_jax.eval import stored
    from fcn_jax.eval.evaluate import evaluate_checkpoint
    from fcn_jax.runtime import distributed, json_text

    images = stored.ImageScores()
    outcome = evaluate_checkpoint(
        args.checkpoint,
        dataset=args.dataset,
        data=args.data,
        split=args.split,
        value_range=_value_range(args),
        exact_sizes=args.exact_sizes,
        weights=args.weights,
        protocol=args.protocol,
        settings=_settings(args),
        metrics=args.metrics,
        batch_size=args.batch_size,
        each=images.add,
    )
    if note := stored.keep(outcome, images):
        print(f"note: {note}", file=sys.stderr)
    if not distributed.is_first():
        return 0
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
        protocol=args.protocol,
        settings=_settings(args),
        batch_size=args.batch_size,
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
