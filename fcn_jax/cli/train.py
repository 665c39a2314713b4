"""`fcn-jax train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fcn_jax.cli.arguments import (
    add_command,
    add_processes,
    add_repeated,
    add_weights,
    directory,
    steps,
)


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "train",
        "Train a model with the settings of a recipe.",
        run,
        "Exit status: 0 done; 1 the run could not continue (the loss is not finite, input workers "
        "were killed, disk or memory is full); 2 bad input, that is a setting or a file; 128 + N "
        "stopped by signal N. Whatever ends a run, its completed steps are saved if possible, and "
        "the same command continues it.",
    )
    add = parser.add_argument
    about = "Shipped recipe, or recipe file (default: that of the run in --workdir, or shapes)."
    add("recipe", nargs="?", metavar="RECIPE|FILE.toml", help=about)
    add("--data", metavar="DIR", help="Folder of the dataset.")
    add(
        "--weights",
        metavar="FILE|NAME|CHECKPOINT",
        help="Initial weights: a file (.pth, .safetensors), the name of published weights, or a "
        "run or checkpoint (default: random values).",
    )
    add_weights(parser)
    add_processes(parser)
    about = "Run directory, to which everything is written (default: runs/RECIPE). A run in it is "
    about += "continued from its last checkpoint."
    add("--workdir", metavar="DIR", type=directory, help=about)
    about = "Trace these steps into RUN/profile, for Perfetto or XProf: FIRST:LAST, or a number of "
    about += "steps shortly after the start."
    add("--profile", metavar="STEPS", type=steps, help=about)
    about = "Change a setting, such as optim.lr=0.01 (fcn-jax settings)."
    add_repeated(parser, "--set", "KEY=VALUE", about)


def run(args: argparse.Namespace) -> int:
    """Train."""
    import shlex
    import signal

    from fcn_jax import recipes
    from fcn_jax.config import parse
    from fcn_jax.runtime import distributed
    from fcn_jax.train.loop import train
    from fcn_jax.train.profiling import Steps
    from fcn_jax.train.settings import start_from

    recipe = "shapes" if args.recipe is None else args.recipe
    workdir = args.workdir or Path("runs") / Path(recipe).stem
    if args.recipe is None and args.workdir and (workdir / "config.json").exists():
        table: dict[str, Any] = recipes.read_run(workdir).model_dump(mode="json")
    else:
        table = recipes.read_recipe(recipe)
    flags = {
        "data.root": args.data,
        "init.weights": args.weights,
        "init.reinit": args.reinit or None,
        "init.drop": args.drop or None,
        "init.key": args.key or None,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    config = parse(recipes.override(table, [*args.set, *given]), recipe)
    profile = Steps(*args.profile) if args.profile else None
    result = train(config, workdir, profile=profile)
    status = 128 + signal.Signals[result.stopped_by].value if result.stopped_by else 0
    if not distributed.is_first():
        return status
    if not result.was_finished:
        _print_times(workdir)
    again = f"fcn-jax train --workdir {shlex.quote(str(workdir))}"
    if result.stopped_by:
        saved = "nothing is written"
        if result.saved:
            saved = f"the work up to step {result.saved} is saved; continue with: {again}"
        print(f"stopped by {result.stopped_by} after step {result.step}: {saved}")
        return status
    if result.was_finished:
        print(
            f"{workdir} is finished (step {result.step}). To train more, start another run from "
            f"its parameters: fcn-jax train {start_from(workdir)}; if optim.schedule is "
            f"'constant', raise its epochs: {again} --set train.epochs=N"
        )
    if result.scores:
        print(f"val {result.scores.summary()}; run in {workdir}")
    if not result.was_finished:
        _write_report(workdir)
    return 0


def _print_times(workdir: Path) -> None:
    """Print what the run, with its earlier parts, spent its time on."""
    from fcn_jax.errors import CheckpointError
    from fcn_jax.report import run, times

    try:
        line = times.summary(run.read_runs([workdir])[0])
    except CheckpointError:  # the run was stopped before it wrote anything
        return
    if line:
        print(line)


def _write_report(workdir: Path) -> None:
    """Write the page about the run. A failure is a warning: the training is done."""
    import logging

    from fcn_jax import report
    from fcn_jax.errors import FcnJaxError

    try:
        print(f"report: {report.write([workdir])}")
    except FcnJaxError as error:
        logging.getLogger(__name__).warning("the training is done, but not its report: %s", error)
