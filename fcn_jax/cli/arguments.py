"""Arguments that several commands share, and their types."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[argparse.Namespace], int]


class Commands:
    """The commands of a parser."""

    def __init__(self, subparsers: Any) -> None:
        """Wrap what `add_subparsers` returned."""
        self._subparsers = subparsers

    def add(self, name: str, help: str, run: Run | None = None, epilog: str | None = None) -> Any:
        """Add a command and return its parser; `run` gets the arguments and returns the status."""
        parser = self._subparsers.add_parser(name, help=help, description=help, epilog=epilog)
        if run is not None:
            parser.add_argument(
                "--debug", action="store_true", help="Show the traceback of an error."
            )
            parser.set_defaults(call=run)
        return parser


def repeated(parser: Any, option: str, metavar: str, help: str) -> None:
    """Add an option that may be given several times."""
    parser.add_argument(option, metavar=metavar, action="append", default=[], help=help)


def add_trained(parser: Any) -> None:
    """Add what `eval` and `predict` share: a trained model, and how images are scaled."""
    parser.add_argument(
        "checkpoint",
        metavar="RUN|CHECKPOINT",
        help="Run directory (its best checkpoint is used), or one checkpoint.",
    )
    parser.add_argument(
        "--value-range",
        metavar=("LOW", "HIGH"),
        type=float,
        nargs=2,
        help="Stored values that mean black and white in images with more than 8 bits "
        "(default: as in training).",
    )
    parser.add_argument(
        "--exact-sizes",
        action="store_true",
        help="Compile a program for each image size. By default, images of many different sizes "
        "are padded to share programs.",
    )


def add_model(parser: Any, head: str) -> None:
    """Add the arguments that name a model; `head` is the default head of a backbone."""
    parser.add_argument(
        "--model", metavar="NAME", required=True, help="Registered model or backbone."
    )
    parser.add_argument(
        "--head", metavar="NAME", help=f"Head to put on a backbone (default: {head})."
    )
    parser.add_argument(
        "--aux-head", metavar="NAME", help="Auxiliary head to put on a backbone (default: none)."
    )
    parser.add_argument(
        "--num-classes",
        metavar="N",
        type=int,
        help="Number of classes (default: that of the registered model, or 21).",
    )
    parser.add_argument(
        "--output-stride",
        metavar="N",
        type=int,
        help="Output stride of the backbone (default: that of the backbone).",
    )


def add_options(parser: Any, *parts: str) -> None:
    """Add `--PART-option KEY=VALUE` for each part of a model."""
    for part in parts:
        what = part.replace("-", " ").replace("aux", "auxiliary")
        repeated(
            parser,
            f"--{part}-option",
            "KEY=VALUE",
            f"Set an option of the {what}, such as width=64.",
        )


def add_weights(parser: Any) -> None:
    """Add the arguments that select tensors of a weights file."""
    add_reinit(parser)
    repeated(parser, "--drop", "GLOB", "Ignore the tensors of the file with such names.")
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="Load this state dict if the file holds several, such as model_ema.",
    )


def add_reinit(parser: Any) -> None:
    """Add `--reinit`."""
    repeated(parser, "--reinit", "GLOB", "Keep random initial values in tensors with such names.")


def directory(text: str) -> Path:
    """Return the path of a directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of a directory is empty")
    return Path(text)


def seconds(text: str) -> float:
    """Return a duration above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"invalid duration '{text}', expected seconds above 0")
    return value


def size(text: str) -> tuple[int, int]:
    """Return height and width."""
    height, separator, width = text.lower().partition("x")
    if not (separator and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(
            f"invalid size '{text}', expected HEIGHTxWIDTH in pixels, such as 320x480"
        )
    return int(height), int(width)
