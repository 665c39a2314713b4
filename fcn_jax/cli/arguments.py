"""Arguments that several commands share, and their types."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_command(
    commands: Any,
    name: str,
    help: str,
    run: Callable[[argparse.Namespace], int] | None = None,
    epilog: str | None = None,
) -> Any:
    """Add a command and return its parser; `run` gets the arguments and returns the status.

    `commands` is the result of `add_subparsers`.
    """
    parser = commands.add_parser(name, help=help, description=help, epilog=epilog)
    if run is not None:
        parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        parser.set_defaults(call=run)
    return parser


def add_repeated(parser: Any, option: str, metavar: str, help: str) -> None:
    """Add an option that may be given several times."""
    parser.add_argument(option, metavar=metavar, action="append", default=[], help=help)


def add_checkpoint(parser: Any) -> None:
    """Add the argument that names a trained model."""
    about = "Run directory (its best checkpoint is used), checkpoint, portable directory, or id of "
    about += "a model on the Hugging Face Hub."
    parser.add_argument("checkpoint", metavar="RUN|CHECKPOINT|HUB_ID", help=about)


def add_trained(parser: Any) -> None:
    """Add the arguments that `eval` and `predict` share."""
    add_checkpoint(parser)
    add_average(parser)
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


def add_average(parser: Any) -> None:
    """Add `--weights`, which chooses among raw and averaged weights of a checkpoint."""
    about = "Weights to use: the averages over training steps (optim.ema_decay), or those of the "
    about += "last step (default: ema if the checkpoint has them)."
    parser.add_argument("--weights", choices=("ema", "raw"), help=about)


_PARTS = ("backbone", "head", "aux_head")


def add_model(parser: Any, head: str, required: bool = True, trained: str = "") -> None:
    """Add the arguments that name a model.

    `head` is the default head of a backbone; `trained` replaces the help of `--model`.
    """
    add = parser.add_argument
    about = trained or "Registered model or backbone (fcn-jax plugins list)."
    add("--model", metavar="NAME", required=required, help=about)
    add("--head", metavar="NAME", help=f"Head to put on a backbone (default: {head}).")
    add("--aux-head", metavar="NAME", help="Auxiliary head to put on a backbone (default: none).")
    about = "Number of classes (default: that of the registered model, or 21)."
    add("--num-classes", metavar="N", type=int, help=about)
    about = "What the logits mean: binary is one logit for two classes (default: multiclass)."
    add("--task", choices=("multiclass", "binary"), help=about)
    about = "Output stride of the backbone (default: that of the backbone)."
    add("--output-stride", metavar="N", type=int, help=about)
    for part in _PARTS:
        about = f"Set an option of the {part.replace('aux_', 'auxiliary ')}, such as width=64."
        add_repeated(parser, _option(part), "KEY=VALUE", about)


def model_changes(args: argparse.Namespace) -> dict[str, Any]:
    """Return the changes of a model that the arguments of `add_model` ask for."""
    from fcn_jax.recipes import override

    names = ("head", "aux_head", "num_classes", "output_stride", "task")
    options = {
        f"{part}_options": override({}, getattr(args, f"{part}_option"), _option(part))
        for part in _PARTS
    }
    return {name: getattr(args, name) for name in names} | options


def _option(part: str) -> str:
    return f"--{part.replace('_', '-')}-option"


def add_weights(parser: Any) -> None:
    """Add the arguments that select tensors of a weights file."""
    add_reinit(parser)
    add_repeated(parser, "--drop", "GLOB", "Ignore the tensors of the file with such names.")
    about = "Load this state dict if the file holds several, such as model_ema."
    parser.add_argument("--key", metavar="KEY", default="", help=about)
    add_license(parser)


def add_reinit(parser: Any) -> None:
    """Add `--reinit`."""
    about = "Keep random initial values in tensors with such names."
    add_repeated(parser, "--reinit", "GLOB", about)


def add_license(parser: Any) -> None:
    """Add `--accept-license`, which accepts a license for the rest of the process."""

    def accepted(text: str) -> str:
        from fcn_jax.convert import licenses

        licenses.accept(text)
        return text

    about = "Accept a license that restricts the use of published weights, such as cc-by-nc-4.0."
    parser.add_argument("--accept-license", metavar="LICENSE", type=accepted, help=about)


def add_processes(parser: Any) -> None:
    """Add the arguments that join several processes; see `fcn_jax.runtime.distributed.join`."""
    add = parser.add_argument_group(
        "processes",
        "Processes that SLURM, Open MPI, Kubernetes or Cloud TPUs started together are detected. "
        "Elsewhere, start each with these (see docs/hosts.md and fcn-jax launch).",
    ).add_argument
    about = "Address of process 0, the same in all processes."
    add("--coordinator", metavar="HOST:PORT", help=about)
    about = "Number of this process, from 0 to N - 1."
    add("--process-id", metavar="I", type=int, help=about)
    about = "Number of processes; 1 alone turns the detection off."
    add("--num-processes", metavar="N", type=int, help=about)
    about = "Time limit until all processes are connected (default: 300)."
    add("--connect-timeout", metavar="SECONDS", type=seconds, default=300.0, help=about)


def directory(text: str) -> Path:
    """Return the path of a directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of a directory is empty")
    return Path(text)


def count(text: str) -> int:
    """Return a whole number of at least 1."""
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"invalid number '{text}', expected 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """Return a duration above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"invalid duration '{text}', expected seconds above 0")
    return value


def steps(text: str) -> tuple[int, int | None]:
    """Return the number of some steps, and the first one if it is named."""
    first, colon, last = text.partition(":")
    numbers = [int(part) for part in (first, last) if part.isascii() and part.isdecimal()]
    if len(numbers) != 1 + bool(colon) or min(numbers) < 1 or numbers[0] > numbers[-1]:
        raise argparse.ArgumentTypeError(
            f"invalid steps '{text}', expected FIRST:LAST, such as 10:15, or a number of steps"
        )
    return (numbers[1] - numbers[0] + 1, numbers[0]) if colon else (numbers[0], None)


def size(text: str) -> tuple[int, int]:
    """Return height and width."""
    height, separator, width = text.lower().partition("x")
    if not (separator and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(
            f"invalid size '{text}', expected HEIGHTxWIDTH in pixels, such as 320x480"
        )
    return int(height), int(width)
