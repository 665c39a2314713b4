"""`fcn-jax launch`."""

from __future__ import annotations

import argparse
from typing import Any

from fcn_jax.cli.arguments import add_command


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "launch",
        "Start several processes of a command on this machine, which train or evaluate together.",
        run,
        "Exit status: 0 if all processes end with 0; otherwise that of the first one that does not "
        "(128 + N if signal N killed it). The others are ended, too.",
    )
    add = parser.add_argument
    about = "Number of processes."
    add("--processes", metavar="N", type=int, required=True, help=about)
    about = "GPUs of each process (default: 1). Process 0 gets the first ones, and so on."
    add("--gpus-per-process", metavar="K", type=int, default=1, help=about)
    about = "Run on CPUs, which each process divides into K devices."
    add("--cpu-devices", metavar="K", type=int, help=about)
    about = "Port of this machine that the processes meet at (default: a free one)."
    add("--port", metavar="PORT", type=int, help=about)
    about = "Command and its arguments after --, such as: -- train camvid --data DIR."
    add("command", metavar="-- COMMAND ...", nargs=argparse.REMAINDER, help=about)


def run(args: argparse.Namespace) -> int:
    """Start the processes and wait for them."""
    from fcn_jax.errors import ConfigError
    from fcn_jax.runtime.launch import launch

    command = args.command[args.command[:1] == ["--"] :]
    if command[:1] not in (["train"], ["eval"], ["predict"]):
        named = f"'{command[0]}'" if command else "no command"
        raise ConfigError(
            f"launch: {named} after --; expected train, eval or predict with their arguments, such "
            "as: fcn-jax launch --processes 2 -- train camvid --data DIR"
        )
    return launch(
        command,
        args.processes,
        gpus_per_process=args.gpus_per_process,
        cpu_devices=args.cpu_devices,
        port=args.port,
    )
