"""Errors of every model against PyTorch: the tables of docs/equivalence.md.

    python -m benchmarks.equivalence                         # all models; hours on one core
    python -m benchmarks.equivalence resnet18:16 resnet50    # some of them
    python -m benchmarks.equivalence --dtype bfloat16        # all models in bfloat16
    python -m benchmarks.equivalence --page                  # only write the page

A model is a registered name; `:N` after it selects an output stride. The result of each model is
written to benchmarks/results/equivalence at once, in bfloat16 to a file of its own. A model is
skipped if a result with the same settings and versions exists, so an interrupted run can be
continued. `--again` measures all models again. `--mutate` adds the mutation score, which takes
longer than all else; `--mutate N` plants at most N faults of each kind. The page shows all existing
results, in one table for each command.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.arguments import Parser
from fcn_jax import verify_model
from fcn_jax.runtime import process
from fcn_jax.runtime.atomic import write_json, write_text
from fcn_jax.verify import Report, Section, evidence

RESULTS = Path(__file__).parent / "results" / "equivalence"
PAGE = Path(__file__).parents[1] / "docs" / "equivalence.md"

MODELS = (
    "fcn32s_resnet18",
    "resnet18:16",
    "resnet18:8",
    "resnet34",
    "resnet50",
    "resnet50:8",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "fcn32s_vgg16",
    "fcn16s_vgg16",
    "fcn8s_vgg16",
    "fcn8s_atonce_vgg16",
)
"""All models, in the order of the table. Models of plugins require their distributions.
`fcn8s_vgg16` requires 20 GB of memory for its fully connected layers."""

TRAIN_LR = dict.fromkeys(
    ("fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_vgg16", "fcn8s_atonce_vgg16"), 1e-4
)
"""Learning rates that differ from those of the recipes. With the default, PyTorch's loss is not
finite after a few steps: these models have no normalization, and images are 0 to 255."""

NARROW = (
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    "fcn32s_vgg16",
    "fcn16s_vgg16",
    "fcn8s_atonce_vgg16",
)
OPTIONS = {name: {"width": 512} for name in NARROW}
"""Options of backbones. With 4096 channels in fc6 and fc7, training five networks takes 20 GB."""


COLUMNS = {
    "layers, isolated": "worst layer",
    "logits": "logits",
    "gradients": "gradients",
    "training with sgd": "training steps, SGD",
    "training with adamw": "training steps, AdamW",
}
"""Sections of a report -> columns of the table. Each step is a section of its own; the worst
counts."""

INTRODUCTION = """\
# Equality with PyTorch

Each model is compared with its PyTorch reference. Both have the same random weights and run on the
same drawn scenes. Backbones have the head `fcn32s`, and the number after a colon is their output
stride. The criterion is that of `fcn_jax/verify/criterion.py`: errors are relative L2 distances to
PyTorch in float64. The reference error of a tensor is PyTorch's own in the compared precision, the
worst of four correct runs (oneDNN on and off, contiguous and channels_last), but at least a few
roundings (2^-21 in float32, 2^-9 in bfloat16). JAX may have twice the reference error in layers and
logits, and three times in gradients and training steps. In bfloat16, PyTorch runs with autocast:
parameters stay float32 on both sides.

Each cell is about one tensor, the one whose error is nearest to its limit: **error of JAX / limit
(error of PyTorch)**.

**Gradients** are compared with weights for which no unit lies at a kink. Where a ReLU's input is
within four times PyTorch's largest float32 error of zero, the bias of its channel is moved; where a
pooling window is tied, its kernel changes a little, or the inputs get noise. A float64 pass checks
the distances. What cannot be moved is listed, and at most five tensors may then have a wide limit.

**Training steps** are those of `fcn-jax train`, with SGD (momentum 0.9, weight decay, poly
schedule) and with AdamW (cosine schedule with warm-up, no weight decay of biases and
normalizations). Before each step all sides receive the same parameters and buffers, those of
PyTorch in float64, rounded to float32; each keeps its own momentum. So errors cannot grow from step
to step, and the change of every parameter and buffer is compared after every step. A tensor is
*inconclusive* if PyTorch's own error is one half or more. The change of a float32 parameter carries
the rounding of the whole parameter, which is most of the error of small steps: a reference error of
1e-3 in training is that, and the same on both sides.

**Sensitivity floor**: the smallest relative change of the logits per relative change of a tensor,
and its name. A tensor is *not proven* if moving it by its own size moves the logits by less than
100 times JAX's limit, if its elements are all alike, or if it equals another of its kind. More than
2 % inconclusive tensors make a comparison INCONCLUSIVE.

**Mutation score**: the share of faults, planted one at a time on JAX's side, that the checks catch:
layers alone and in the network, outputs, and outputs and statistics of a call in train mode, until
one of them fails. JAX's side is traced and run equation by equation, with one tensor or equation
changed. PyTorch runs once, so the limits are those of the comparison. A layer is named rightly if
it holds the fault, or is the first one after it. A change that cannot have an effect, such as a
second ReLU, is not counted. These columns are empty where a result was made without them.

XLA runs here without LLVM's optimizations (`--xla_backend_optimization_level=0`). A whole network
runs a few times only, and they would take most of the time.
"""

_QUICK = "--xla_backend_optimization_level=0"


def settings_of(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return all settings that the result of a model depends on."""
    return {
        "size": list(args.size),
        "batch": args.batch,
        "train_steps": args.train_steps,
        "seeds": args.seeds,
        "train_lr": TRAIN_LR.get(name),
        "options": OPTIONS.get(name, {}),
        "dtype": args.dtype,
        "mutate": args.mutate,
    }


def measure(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Verify one model with each seed; returns its result, ready for JSON."""
    model, _, stride = name.partition(":")
    runs = []
    for seed in range(settings["seeds"]):
        began = time.perf_counter()
        report = verify_model(
            model,
            output_stride=int(stride) if stride else None,
            sizes=[tuple(settings["size"])],
            batch=settings["batch"],
            grad=True,
            train_steps=settings["train_steps"],
            train_recipes=["sgd", "adamw"],
            train_lr=settings["train_lr"],
            dtype=settings["dtype"],
            backbone_options=settings["options"],
            seed=seed,
            mutate=settings["mutate"],
        )
        seconds = round(time.perf_counter() - began, 1)
        print(f"{name}, seed {seed}: {report.verdict} ({seconds} s)", flush=True)
        runs.append({"seed": seed, "seconds": seconds, **summary(report)})
        jax.clear_caches()
    return {"model": name, **settings, "runs": runs, "environment": dict(report.environment)}


def summary(report: Report) -> dict[str, Any]:
    """Return the figures of a report: for each section, the tensor nearest to its limit."""
    groups: dict[str, list[Section]] = {}
    for section in report.sections:
        title = section.title.split(" at ")[0].split(", step ")[0]
        groups.setdefault(title, []).append(section)
    sections = {title: _worst(found) for title, found in groups.items()}
    agreement = report.agreement[0]
    assert report.coverage is not None
    return {
        "equal": report.equal,
        "tensors": len(report.coverage.loaded),
        "sections": {title: found for title, found in sections.items() if found},
        "training": dict(zip(("compared", "inconclusive"), report.trained, strict=True)),
        "sensitivity": _sensitivity(report),
        "mutation": _mutation(report),
        "argmax": agreement.argmax,
        "torch_argmax": agreement.torch_argmax,
    }


def _worst(sections: list[Section]) -> dict[str, Any] | None:
    """Figures of the tensor nearest to its limit in sections of one kind."""
    comparisons = [comparison for section in sections for comparison in section.comparisons]
    worst = max(comparisons, key=lambda comparison: comparison.excess, default=None)
    return worst and {
        "tensors": len(comparisons),
        "inconclusive": sum(len(section.inconclusive) for section in sections),
        "attempts": max(section.attempts for section in sections),
        "worst": worst.name,
        "error": _finite(worst.error),
        "limit": worst.limit,
        "reference_error": worst.reference_error,
        "excess": _finite(worst.excess),
    }


def _sensitivity(report: Report) -> dict[str, Any] | None:
    """The least sensitive tensor, and the number of those that are not proven."""
    lowest = min(getattr(report, "sensitivity", ()), key=lambda entry: entry.value, default=None)
    return lowest and {
        "tensor": lowest.name,
        "lowest": lowest.value,
        "not_proven": len(report.not_proven),
    }


def _mutation(report: Report) -> dict[str, Any] | None:
    """Numbers of planted faults, and shares of those caught, and with the right layer named."""
    found = getattr(report, "mutation", None)
    return found and {key: found.to_dict()[key] for key in ("planted", "caught", "right_layer")}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def page(results: list[dict[str, Any]]) -> str:
    """Return the text of docs/equivalence.md."""
    lines = [INTRODUCTION]
    for command in dict.fromkeys(command_of(result) for result in results):
        rows = [result for result in results if command_of(result) == command]
        made = f"Made by `{command}`; names after it select models."
        lines += [f"{made} Models without a row are not measured yet.\n", *table(rows), ""]
    versions = dict.fromkeys(
        ", ".join(f"{key} {value}" for key, value in result["environment"]["versions"].items())
        for result in results
    )
    return "\n".join([*lines, f"Versions: {'; '.join(versions)}."]) + "\n"


def command_of(result: dict[str, Any]) -> str:
    """Return the command that measures a result."""
    height, width = result["size"]
    return (
        f"python -m benchmarks.equivalence --size {height} {width} --batch {result['batch']} "
        f"--train-steps {result['train_steps']} --seeds {result['seeds']}"
        + (f" --dtype {result['dtype']}" if result["dtype"] != "float32" else "")
        + (" --mutate" if result["mutate"] else "")
        + (f" {result['mutate']}" if result["mutate"] not in (True, False) else "")
    )


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table with a row for each model. Each cell shows the worst seed."""
    lines = [
        "| model | equal | tensors | argmax agrees: JAX / PyTorch | "
        + " | ".join(COLUMNS.values())
        + " | conclusive / inconclusive after training | sensitivity floor | mutation score: "
        "caught of planted, right layer |",
        "|---" * (len(COLUMNS) + 7) + "|",
    ]
    for result in results:
        runs = result["runs"]
        changes = {f"backbone option {key}": value for key, value in result["options"].items()}
        if result["train_lr"]:
            changes["learning rate"] = result["train_lr"]
        name = f"`{result['model']}`" + "".join(f", {key} {v}" for key, v in changes.items())
        cells = [
            name,
            "yes" if all(run["equal"] for run in runs) else "**no**",
            str(runs[0]["tensors"]),
            f"{min(run['argmax'] for run in runs):.4%} / "
            f"{min(run['torch_argmax'] for run in runs):.4%}",
            *(_cell(runs, title) for title in COLUMNS),
        ]
        compared, inconclusive = max(map(_trained, runs), key=lambda numbers: numbers[1])
        cells += [
            f"{compared - inconclusive} / {inconclusive} ({inconclusive / compared:.1%})"
            if compared
            else "",
            _lowest(runs),
            _score(runs),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _trained(run: dict[str, Any]) -> tuple[int, int]:
    """Numbers of tensors compared after training steps, and of inconclusive ones."""
    found = run["training"]
    # Results of earlier versions have the second name.
    return found["compared"], found.get("inconclusive", found.get("unjudged"))


def _cell(runs: list[dict[str, Any]], title: str) -> str:
    found = [run["sections"][title] for run in runs if title in run["sections"]]
    if not found:
        return ""
    worst = max(found, key=lambda one: math.inf if one["excess"] is None else one["excess"])
    if worst["excess"] == 0 and worst["inconclusive"] == worst["tensors"]:
        return "all inconclusive"
    error = "not finite" if worst["error"] is None else f"{worst['error']:.1e}"
    return f"`{worst['worst']}` {error} / {worst['limit']:.1e} ({worst['reference_error']:.1e})"


def _lowest(runs: list[dict[str, Any]]) -> str:
    found = [run["sensitivity"] for run in runs if run.get("sensitivity")]
    if not found:
        return ""
    least = min(found, key=lambda one: one["lowest"])
    unproven = max(one["not_proven"] for one in found)
    return f"`{least['tensor']}` {least['lowest']:.1e}; {unproven} not proven"


def _score(runs: list[dict[str, Any]]) -> str:
    found = [run["mutation"] for run in runs if run.get("mutation")]
    if not found:
        return ""
    least = min(found, key=lambda one: one["caught"])
    return f"{least['caught']:.1%} of {least['planted']}, {least['right_layer']:.1%}"


def main() -> None:
    """Measure the models, write their results and the page."""
    parser = Parser("benchmarks.equivalence", __doc__)
    parser.add_argument("models", nargs="*", help="models to measure (default: all)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(64, 96), metavar=("H", "W"), help="image size"
    )
    parser.add_argument("--batch", type=int, default=2, help="images in a batch")
    parser.add_argument("--train-steps", type=int, default=5, help="number of training steps")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds for each model")
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="compared precision")
    parser.add_argument(
        "--mutate",
        metavar="N",
        type=int,
        nargs="?",
        default=False,
        const=True,
        help="add the mutation score; with N, of at most N faults of each kind",
    )
    parser.add_argument("--again", action="store_true", help="measure existing results again")
    parser.add_argument("--page", action="store_true", help="only write the page")
    args = parser.parse_args()
    process.configure_process(trains=False)  # as `fcn-jax verify` does
    if not args.page:
        # XLA reads its flags once, when JAX first computes something.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()
        RESULTS.mkdir(parents=True, exist_ok=True)
        for name in args.models or MODELS:
            suffix = "" if args.dtype == "float32" else f"_{args.dtype}"
            path = RESULTS / f"{name.replace(':', '_os')}{suffix}.json"
            settings = settings_of(name, args)
            if path.exists() and not args.again:
                known = json.loads(path.read_text())
                same = all(known.get(key) == value for key, value in settings.items())
                if same and _is_here(known["environment"]):
                    print(f"{name}: skipped, already measured", flush=True)
                    continue
            write_json(path, measure(name, settings))
            write_page()
    write_page()


def _is_here(environment: dict[str, Any]) -> bool:
    """Whether a result's environment is that of this process; it may name further plugins."""
    here = evidence.environment()
    versions = here["versions"].items() <= environment["versions"].items()
    return versions and {**here, "versions": 0} == {**environment, "versions": 0}


def write_page() -> None:
    """Write the page from all results."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    order = {name: number for number, name in enumerate(MODELS)}
    found.sort(key=lambda result: order.get(result["model"], len(order)))
    found.sort(key=lambda result: result["dtype"] != "float32")
    write_text(PAGE, page(found))


if __name__ == "__main__":
    main()
