"""The command line. Each module holds a group of commands and their arguments."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from fcn_jax.cli import (
    convert,
    data,
    evaluate,
    launch,
    plan,
    plugins,
    pretrained,
    recipes,
    report,
    settings,
    train,
    verify,
)
from fcn_jax.errors import FcnJaxError, TrainingError
from fcn_jax.runtime import cache, distributed, process, versions


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; by default those of the process, whose settings
            are then changed to the fastest ones (`fcn_jax.runtime.process`).

    Returns:
        Exit status. 0: done. 1: the run could not continue (the loss is not finite, input workers
        were killed, disk or memory is full, an unexpected error), the models are not equal, or
        plugins are broken. 2: bad input, that is an argument, a setting or a file. 128 + N: stopped
        by signal N.
    """
    args = _parser().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cache.enable_compilation_cache()
    if argv is None:
        cache.replace_damaged_programs()
        process.configure_process(trains=args.call is train.run)
    import logging  # Imported here because --help does not need it.

    log, handler = logging.getLogger("fcn_jax"), _warnings()
    log.addHandler(handler)
    propagated, log.propagate = log.propagate, False
    status, failed = 1, True
    try:
        if hasattr(args, "coordinator"):
            distributed.join(
                args.coordinator,
                args.process_id,
                args.num_processes,
                seconds=args.connect_timeout,
            )
        status, failed = int(args.call(args)), False
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Nobody reads the output, as after `| head`. Python would flush it again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
        return status
    except FcnJaxError as error:
        distributed.fail(error)
        if args.debug:
            raise
        if not distributed.is_known(error):  # else another process prints it
            print(f"fcn-jax: error: {distributed.name()}{_one_line(error)}", file=sys.stderr)
        status = 1 if isinstance(error, TrainingError) else 2
        return status
    except KeyboardInterrupt as error:
        distributed.fail(error)
        if str(error):
            print(f"fcn-jax: {_one_line(error)}", file=sys.stderr)
        status = 130
        return status
    except BaseException as error:
        distributed.fail(error)
        raise
    finally:
        log.removeHandler(handler)
        log.propagate = propagated
        distributed.leave(status, failed=failed)
        if argv is None and status > 128:  # a signal
            process.end_now(status)


def _warnings() -> Any:
    """Return a log handler that prints each warning of the package in one line."""
    import logging

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print(f"fcn-jax: warning: {_one_line(record.getMessage())}", file=sys.stderr)

    return Printing(logging.WARNING)


def _one_line(message: object) -> str:
    """Return a message in one line. Spaces stay as they are, because file names contain them."""
    return " ".join(line.strip() for line in str(message).splitlines() if line.strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fcn-jax",
        description="Semantic segmentation with fully convolutional networks in JAX/Flax, proven "
        "equal to PyTorch.",
    )
    version = versions.package_versions(["fcn-jax"])["fcn-jax"] or "(not installed)"
    parser.add_argument("--version", action="version", version=f"fcn-jax {version}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    training, weights = (train, launch, plan, evaluate), (convert, pretrained, verify)
    for group in (*training, report, data, *weights, plugins, recipes, settings):
        group.add_commands(commands)
    return parser
