"""Write docs/results.md from extracts of training runs.

    python -m benchmarks.results_page add RUN --name NAME    # keep an extract of a run
    python -m benchmarks.results_page                        # write the page

An extract (benchmarks/results/runs/NAME.json) holds the settings of a run, its versions, seed and
device, every evaluation with the IoU of each class, the training loss and the time. RUN is a run
directory of `fcn-jax train`, or of `python -m benchmarks.torch_training --workdir`. Runs that
differ only in their seed make up a mean; runs of PyTorch with the same settings stand next to it.
`--base NAME` says that a run varies the recipe of another one, which puts it into the table of what
each change adds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import runs
from benchmarks.arguments import Parser
from fcn_jax.report.settings import toml
from fcn_jax.runtime.atomic import write_text

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
Run = Mapping[str, Any]

INTRODUCTION = """# Results of trainings

This page is written by `python -m benchmarks.results_page` from extracts of `metrics.jsonl` in
`benchmarks/results/runs`. Scores are those of the validation split after the last step, by the
protocol that is named: mIoU is the mean over the classes of TP / (TP + FP + FN), and ± is the
standard deviation over seeds. "Best" is the best evaluation during training, which was chosen on
the same images. PyTorch trained the same recipe, from the same initial values on the same batches
(`python -m benchmarks.torch_training`).
"""


def page(extracts: Sequence[Run]) -> str:
    """Return the page.

    Raises:
        SystemExit: an extract names a base that is not kept.
    """
    sections = [INTRODUCTION]
    for title, group in _grouped(extracts, _dataset_of).items():
        groups = list(_grouped(group, _group_of).values())
        sections += [f"## {title}\n", *_scores_table(groups), *_ablations(groups, extracts)]
        sections += [*_class_table(groups), *_runs_table(group)]
    return "\n".join(sections).rstrip() + "\n"


def _grouped(extracts: Iterable[Run], key: Callable[[Run], str]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for extract in extracts:
        groups.setdefault(key(extract), []).append(extract)
    return groups


def _dataset_of(run: Run) -> str:
    data, protocol = run["settings"]["data"], run["settings"]["eval"]["protocol"] or "native"
    note = f" ({run['note']})" if run["note"] else ""
    return f"`{data['dataset']}`{note}, split `{data['val_split']}`, protocol `{protocol}`"


def _group_of(run: Run) -> str:
    """What the runs of a mean have in common: settings, data and the number of steps."""
    common = [runs.identity(run["settings"]), run["steps"], run["epoch_steps"]]
    return json.dumps(common, sort_keys=True)


def _of(group: Sequence[Run], framework: str) -> list[Run]:
    return [run for run in group if run["framework"] == framework]


def _scores_table(groups: Sequence[Sequence[Run]]) -> list[str]:
    rows = []
    for group in groups:
        ours, theirs = _of(group, "fcn-jax"), _of(group, "pytorch")
        frequent = [score for run in ours if (score := _frequent(run)) is not None]
        rows.append(
            [
                _label(group[0]),
                f"{_epochs(group[0])}",
                _mean([run["val"][-1]["miou"] for run in ours]),
                _mean([_best(run) for run in ours]),
                _mean([run["val"][-1]["pixel_accuracy"] for run in ours]),
                _mean([run["val"][-1]["miou"] for run in theirs]),
                _mean([run["val"][-1]["pixel_accuracy"] for run in theirs]),
                _mean(frequent),
            ]
        )
    titles = ["recipe and changed settings", "epochs", "mIoU", "best", "pixel accuracy"]
    titles += ["PyTorch's mIoU", "PyTorch's pixel accuracy", "mIoU of frequent classes"]
    lines = _table(titles, rows)
    found = next((run["frequent"] for group in groups for run in group if "frequent" in run), None)
    if found:
        lines += [
            f"Frequent classes occur in at least {found['min_images']} training images: "
            f"{', '.join(found['classes'])}.\n"
        ]
    return lines


def _frequent(run: Run) -> float | None:
    if "frequent" not in run:
        return None
    values = [run["val"][-1]["iou"][name] for name in run["frequent"]["classes"]]
    defined = [value for value in values if value is not None]
    return statistics.mean(defined) if defined else None


def _ablations(groups: Sequence[Sequence[Run]], extracts: Sequence[Run]) -> list[str]:
    """Tables of the differences to each base."""
    by_name = {run["name"]: run for run in extracts}
    lines: list[str] = []
    varied = [(named[0], group) for group in groups if (named := [r for r in group if r["base"]])]
    for base, members in _grouped([run for run, _ in varied], lambda run: run["base"]).items():
        if base not in by_name:
            raise SystemExit(f"{members[0]['name']}: its base '{base}' is not kept; add that run")
        key = _group_of(by_name[base])
        base_group = [run for run in extracts if _group_of(run) == key]
        rows = [
            [
                _changes(by_name[base], run),
                *(_delta(base_group, group, score) for score in ("miou", "pixel_accuracy")),
            ]
            for run, group in varied
            if run["base"] == base
        ]
        lines += [f"Changes of {_label(by_name[base])} (`{base}`):\n"]
        lines += _table(["changed", "difference of mIoU", "difference of pixel accuracy"], rows)
    return lines


def _changes(base: Run, run: Run) -> str:
    old, new = runs.identity(base["settings"]), runs.identity(run["settings"])
    changed = {key: new.get(key) for key in {**old, **new} if old.get(key) != new.get(key)}
    return _settings(changed) or f"{_epochs(run)} epochs"


def _delta(base: Sequence[Run], group: Sequence[Run], score: str) -> str:
    """Mean difference over the seeds that both have, or between the means without such seeds."""
    first, second = (
        {run["seed"]: run["val"][-1][score] for run in _of(runs_, "fcn-jax")}
        for runs_ in (base, group)
    )
    if not first or not second:
        return ""
    common = sorted(first.keys() & second.keys())
    if common:
        return _mean([second[seed] - first[seed] for seed in common], sign="+")
    change = statistics.mean(second.values()) - statistics.mean(first.values())
    return f"{change:+.4f} (other seeds)"


def _class_table(groups: Sequence[Sequence[Run]]) -> list[str]:
    """IoU of each class, in a column for each recipe."""
    ours = [found for group in groups if (found := _of(group, "fcn-jax"))]
    if not ours:
        return []
    names = dict.fromkeys(name for group in ours for name in group[0]["val"][-1]["iou"])
    rows = [
        [name, *(_mean([run["val"][-1]["iou"].get(name) for run in group]) for group in ours)]
        for name in names
    ]
    return ["IoU by class:\n", *_table(["class", *(_label(group[0]) for group in ours)], rows)]


def _runs_table(group: Sequence[Run]) -> list[str]:
    rows = [
        [
            f"`{run['name']}`",
            "PyTorch" if run["framework"] == "pytorch" else "fcn-jax",
            _label(run),
            str(run["seed"]),
            f"{run['val'][-1]['miou']:.4f}" if run["val"][-1]["miou"] is not None else "",
            f"{run['seconds'] / 60:.0f}",
            ", ".join(run["devices"]),
            ", ".join(
                f"{name} {run['packages'][name]}"
                for name in ("fcn-jax", "jax", "torch")
                if name in run["packages"]
            ),
        ]
        for run in group
    ]
    titles = ["run", "trained by", "recipe", "seed", "mIoU", "minutes", "device", "versions"]
    return ["Runs:\n", *_table(titles, rows)]


def _label(run: Run) -> str:
    name = f"`{run['recipe']}`" if run["recipe"] else "defaults"
    changes = _settings(run["changes"])
    return f"{name}, {changes}" if changes else name


def _settings(changes: Mapping[str, Any]) -> str:
    return ", ".join(
        f"`{key} = {'none' if value is None else toml(value)}`" for key, value in changes.items()
    )


def _epochs(run: Run) -> str:
    """Epochs that were trained, and those that were planned if they differ."""
    done, planned = run["val"][-1]["epoch"], run["settings"]["train"]["epochs"]
    return f"{done:.4g}" if round(done, 3) == planned else f"{done:.4g} of {planned}"


def _best(run: Run) -> float | None:
    return max((e["miou"] for e in run["val"] if e["miou"] is not None), default=None)


def _mean(values: Sequence[float | None], sign: str = "") -> str:
    """Mean and standard deviation of defined values, with their number if there are several."""
    defined = [value for value in values if value is not None]
    if not defined:
        return ""
    mean = f"{statistics.mean(defined):{sign}.4f}"
    if len(defined) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(defined):.4f} ({len(defined)} seeds)"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, without columns that are empty in every row."""
    used = [i for i in range(len(titles)) if any(row[i] for row in rows)]
    lines = [[titles[i] for i in used], ["---"] * len(used)]
    lines += [[row[i].replace("|", "\\|") for i in used] for row in rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]


def main() -> None:
    """Keep an extract of a run, or write the page."""
    parser = Parser("benchmarks.results_page", __doc__)
    commands = parser.add_subparsers(dest="command", metavar="add", help="keep an extract of a run")
    add = commands.add_parser("add", help="keep an extract of a run")
    add.add_argument("run", type=Path, help="run directory")
    add.add_argument("--name", required=True, help="name of the extract")
    add.add_argument("--note", default="", help="what settings do not tell, such as a subset")
    add.add_argument("--base", default="", help="name of the extract whose recipe it varies")
    add.add_argument("--every", type=int, default=10, help="keep the loss of every so many steps")
    add.add_argument(
        "--min-images",
        type=int,
        help="also score the classes that occur in this number of training images; needs the data",
    )
    args = parser.parse_args()
    if args.command == "add":
        found = runs.extract(
            args.run,
            note=args.note,
            base=args.base,
            every=args.every,
            min_images=args.min_images,
        )
        print(f"written: {runs.keep(args.name, found)}")
    else:
        write_text(PAGE, page(runs.kept()))
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
