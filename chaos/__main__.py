"""Run the chaos test; see `chaos.__doc__`."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chaos import report
from chaos.judge import differences
from chaos.kills import Kill, plan
from chaos.story import Story, tell, undisturbed
from chaos.training import Dataset
from fcn_jax.runtime.progress import Progress


def main() -> int:
    """Kill and resume trainings, print the faults, and write the table if asked for.

    Returns:
        The exit status: 1 if there is a fault.
    """
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description="Kill trainings at random moments, and resume them."
    )
    add = parser.add_argument
    about = "kills of trainings by one process (default: 30)"
    add("--kills", type=int, default=30, help=about)
    about = "kills of trainings by two processes (default: 0)"
    add("--pair-kills", type=int, default=0, help=about)
    add("--seed", type=int, default=0, help="seed of all kills (default: 0)")
    add("--workers", type=int, default=2, help="trainings at a time (default: 2)")
    about = "no kill begins after this time (default: 600)"
    add("--limit", type=float, default=600.0, metavar="SECONDS", help=about)
    about = "write the table into this document, between its markers"
    add("--table", type=Path, metavar="FILE", help=about)
    add("--keep", type=Path, metavar="DIR", help="keep the run directories here")
    args = parser.parse_args()

    began = time.monotonic()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        planned = args.kills, args.pair_kills
        stories = run(folder, planned, args.seed, args.workers, args.limit)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(report.table(stories))
    faults = report.faults(stories)
    left_out = sum(planned) - sum(len(story.outcomes) for story in stories)
    late = f"; {left_out} kills are left out because of --limit" * bool(left_out)
    print(f"\n{time.monotonic() - began:.0f} s, {len(faults)} faults{late}")
    for fault in faults:
        print(f"- {fault}")
    if args.table:
        pairs = f" --pair-kills {args.pair_kills}" if args.pair_kills else ""
        command = f"python -m chaos --kills {args.kills}{pairs} --seed {args.seed}"
        report.write(args.table, stories, command)
    return int(bool(faults))


def run(
    folder: Path, kills: Sequence[int], seed: int, lanes: int = 1, limit: float = 600.0
) -> list[Story]:
    """Kill and resume trainings in a folder until all kills are done.

    Args:
        folder: receives the dataset and the run directories.
        kills: number of kills of trainings by one process, by two processes, and so on.
        seed: seed of the kills.
        lanes: number of trainings at a time.
        limit: seconds after which no kill begins.
    """
    data, began, stories = Dataset(folder / "data"), time.monotonic(), list[Story]()
    with Progress("kills", sum(kills), keep=True) as progress:
        for processes, count in enumerate(kills, 1):
            if count:
                # In shares by their work.
                done, all_kills = (
                    sum(number * some for number, some in enumerate(part, 1))
                    for part in (kills[:processes], kills)
                )
                until, planned = began + limit * done / all_kills, plan(count, seed)
                try:
                    stories += _run(folder, data, planned, lanes, processes, progress, until)
                except Exception:  # the results of the others must not be lost
                    failed = Story(folder, processes, faults=[traceback.format_exc()])
                    stories.append(failed)
    return stories


def _run(
    folder: Path,
    data: Dataset,
    kills: Sequence[Kill],
    lanes: int,
    processes: int,
    progress: Progress,
    until: float,
) -> list[Story]:
    name = "undisturbed" if processes == 1 else f"undisturbed-{processes}"
    # The second one starts with compiled programs, as all resumed trainings do.
    first = undisturbed(data, folder / name, processes)
    reference = undisturbed(data, folder / f"{name}-again", processes)
    if found := differences(reference.run, first.run):
        return [Story(reference.run, processes, faults=["differs undisturbed", *found], done=True)]

    def lane(number: int) -> list[Story]:
        own, told = deque(kills[number::lanes]), list[Story]()
        while own and time.monotonic() < until:
            run = folder / f"run-{processes}-{number}-{len(told)}"
            told.append(tell(data, run, own, reference, progress.advance, processes, until))
        return told

    with ThreadPoolExecutor(lanes) as pool:
        return [story for told in pool.map(lane, range(lanes)) for story in told]


if __name__ == "__main__":
    sys.exit(main())
