"""Run the fuzz test; see `fuzz.__doc__`."""

from __future__ import annotations

import argparse
import collections
import itertools
import sys
import time
from pathlib import Path

from fuzz import report
from fuzz.cases import FAMILIES, Case, numbers, plan
from fuzz.workers import run_all, run_one_by_one


def main() -> int:
    """Run cases, print the faults, and write the table if asked for.

    Returns:
        The exit status: 1 if there is a fault.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description="Feed fcn_jax mutated files, settings and arguments."
    )
    parser.add_argument(
        "--cases", type=int, default=3000, help="minimum number of cases (default: 3000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases (default: 0)")
    parser.add_argument(
        "--family", action="append", choices=FAMILIES, help="run only this family; may be repeated"
    )
    parser.add_argument(
        "--show",
        type=int,
        default=2,
        help="number of faults to print for each mutation and kind (default: 2)",
    )
    parser.add_argument("--workers", type=int, default=2, help="number of processes (default: 2)")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="write the table into this document, between its markers",
    )
    parser.add_argument(
        "--only",
        metavar="FAMILY:MUTATION:SEED",
        action="append",
        help="run only this case; may be repeated",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="with --only: keep the case's files here"
    )
    args = parser.parse_args()

    if args.only:
        verdicts = list(run_one_by_one(map(Case.parse, args.only), args.keep or Path("fuzz-cases")))
        for verdict in verdicts:
            print(verdict)
        return int(any(verdict.fault for verdict in verdicts))

    began, counts = time.perf_counter(), numbers(args.cases)
    families = [list(plan(family, counts[family], args.seed)) for family in args.family or FAMILIES]
    # Families alternate, so that every process has slow and fast cases.
    cases = [case for cases in itertools.zip_longest(*families) for case in cases if case]
    verdicts = []
    kinds: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for verdict in run_all(cases, args.workers):
        verdicts.append(verdict)
        if verdict.fault:
            kind = verdict.case.family, verdict.case.mutation, verdict.outcome
            kinds[kind] += 1
            if kinds[kind] <= args.show:
                print(verdict, flush=True)
        if len(verdicts) % 250 == 0:
            print(
                f"{len(verdicts)} of {len(cases)} cases, {time.perf_counter() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    faults = [verdict for verdict in verdicts if verdict.fault]
    print(report.table(verdicts))
    slowest = max(verdicts, key=lambda verdict: verdict.seconds)
    print(
        f"\n{len(verdicts)} cases in {time.perf_counter() - began:.0f} s; the slowest: "
        f"{slowest.case}, {slowest.seconds:.1f} s"
    )
    if args.table:
        report.write(
            args.table, verdicts, f"python -m fuzz --cases {args.cases} --seed {args.seed}"
        )
    if faults:
        print(f"{len(faults)} faults:")
        for (family, mutation, outcome), count in sorted(kinds.items()):
            print(f"  {count:4} {family}:{mutation}: {outcome}")
        print(
            "To run one case and keep its files: python -m fuzz --only FAMILY:MUTATION:SEED "
            "--keep DIR"
        )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
