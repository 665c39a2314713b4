"""`fcn-jax report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fcn_jax.cli.arguments import add_command


def add_commands(commands: Any) -> None:
    """Add the command."""
    about = "Write a page about one or several runs: curves, scores, pictures, settings, time."
    parser = add_command(
        commands,
        "report",
        about,
        _report,
        "The page is one file that needs no other. Confusion matrix and pictures are those of "
        "the newest `fcn-jax eval RUN`, or else of the best evaluation during training.",
    )
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=Path, help="Run directories.")
    about = "Page to write (default: report.html in the directory of a single run, in the current "
    about += "folder for several)."
    add("-o", "--output", metavar="FILE.html", type=Path, help=about)


def _report(args: argparse.Namespace) -> int:
    from fcn_jax import report

    print(report.write(args.runs, args.output))
    return 0
