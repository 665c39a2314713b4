"""Run the chaos test; see `chaos.__doc__`."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
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
    add("--kills", type=int, default=36, help="number of kills (default: 36)")
    add("--seed", type=int, default=0, help="seed of all kills (default: 0)")
    add("--workers", type=int, default=2, help="trainings at a time (default: 2)")
    about = "write the table into this document, between its markers"
    add("--table", type=Path, metavar="FILE", help=about)
    add("--keep", type=Path, metavar="DIR", help="keep the run directories here")
    args = parser.parse_args()

    began = time.monotonic()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        stories = run(folder, args.kills, args.seed, args.workers)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(report.table(stories))
    faults = report.faults(stories)
    print(f"\n{time.monotonic() - began:.0f} s, {len(faults)} faults")
    for fault in faults:
        print(f"- {fault}")
    if args.table:
        report.write(
            args.table, stories, f"python -m chaos --kills {args.kills} --seed {args.seed}"
        )
    return int(bool(faults))


def run(folder: Path, kills: int, seed: int, lanes: int = 1) -> list[Story]:
    """Kill and resume trainings in a folder, several at a time, until all kills are done.

    Raises:
        RuntimeError: an undisturbed training failed, or two of them differ.
    """
    data = Dataset(folder / "data")
    # The second one starts with compiled programs, as all resumed trainings do.
    first = undisturbed(data, folder / "undisturbed")
    reference = undisturbed(data, folder / "undisturbed-2")
    if found := differences(reference.run, first.run):
        raise RuntimeError(f"undisturbed trainings differ: {found}")
    planned, numbers, lock = plan(kills, seed), iter(range(10**9)), threading.Lock()

    def lane(own: deque[Kill]) -> list[Story]:
        stories = []
        while own:
            with lock:
                number = next(numbers)
            stories.append(tell(data, folder / f"run-{number}", own, reference, progress.advance))
        return stories

    with Progress("kills", kills, keep=True) as progress, ThreadPoolExecutor(lanes) as pool:
        told = pool.map(lane, [deque(planned[index::lanes]) for index in range(lanes)])
        return [story for stories in told for story in stories]


if __name__ == "__main__":
    sys.exit(main())
