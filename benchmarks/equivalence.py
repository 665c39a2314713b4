"""How closely the models agree with PyTorch: the table of docs/equivalence.md.

    python -m benchmarks.equivalence                    # every model, hours on 2 cores
    python -m benchmarks.equivalence resnet18 resnet50:8 --seeds 3

A model is a registered name, with `:N` for an output stride. The results of each model are written
to benchmarks/results/equivalence, and the page is made of all of them; `--page` only makes the
page.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import jax

from fcn_jax import verify_model
from fcn_jax.plugins import registry
from fcn_jax.runtime import process
from fcn_jax.runtime.atomic import write_json, write_text
from fcn_jax.verify import Report, Section
from fcn_jax.verify.training import RECIPE

RESULTS = Path(__file__).parent / "results" / "equivalence"
PAGE = Path(__file__).parents[1] / "docs" / "equivalence.md"

STRIDES = {"resnet18": (16, 8), "resnet50": (8,)}
"""Further output strides of backbones."""

TRAIN_LR = dict.fromkeys(
    ("fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_vgg16", "fcn8s_atonce_vgg16"), 1e-4
)
"""Learning rates where `verify`'s own makes PyTorch's loss infinite after a few steps.

These networks take images of 0 to 255 and have no normalization.
"""

NARROW = (
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    "fcn32s_vgg16",
    "fcn16s_vgg16",
    "fcn8s_atonce_vgg16",
)
OPTIONS = {name: {"width": 512} for name in NARROW}
"""Options of backbones. With fc6 and fc7 of 4096 channels, training five copies takes 20 GB."""


def all_models() -> list[str]:
    """The registered models, then the backbones with their strides. `fcn8s_vgg16` takes 20 GB."""
    plugins = registry.default()
    backbones = [entry.name for entry in plugins.entries("backbones")]
    return [
        *(entry.name for entry in plugins.entries("models")),
        *backbones,
        *(f"{name}:{stride}" for name in backbones for stride in STRIDES.get(name, ())),
    ]


def measure(name: str, size: tuple[int, int], batch: int, steps: int, seeds: int) -> dict[str, Any]:
    """The worst of several seeds for one model."""
    model, _, stride = name.partition(":")
    rows = []
    for seed in range(seeds):
        began = time.perf_counter()
        report = verify_model(
            model,
            output_stride=int(stride) if stride else None,
            sizes=[size],
            batch=batch,
            grad=True,
            train_steps=steps,
            train_lr=TRAIN_LR.get(name, RECIPE.lr),
            backbone_options=OPTIONS.get(name),
            seed=seed,
        )
        rows.append(
            summary(report) | {"seed": seed, "seconds": round(time.perf_counter() - began, 1)}
        )
        print(f"{name}, seed {seed}: {report.verdict} ({rows[-1]['seconds']} s)", flush=True)
        jax.clear_caches()
    return {
        "model": name,
        "size": size,
        "batch": batch,
        "train_steps": steps,
        "train_lr": TRAIN_LR.get(name, RECIPE.lr),
        "options": OPTIONS.get(name, {}),
        "runs": rows,
        "environment": dict(report.environment),
    }


def summary(report: Report) -> dict[str, Any]:
    """The figures of a report: the worst tensor of each section, its factor, the largest errors."""
    sections = {}
    for section in report.sections:
        worst = section.worst
        if worst is None:
            continue
        sections["logits" if section.title.startswith("logits") else section.title] = {
            "tensors": len(section.comparisons),
            "worst": worst.name,
            "factor": _finite(section.worst_factor),
            "allowed": section.factor,
            "attempts": section.attempts,
            "error": _finite(_largest(section, "error")),
            "torch_error": _finite(_largest(section, "torch_error")),
        }
    agreement = report.agreement[0]
    assert report.coverage is not None
    return {
        "equal": report.equal,
        "tensors": len(report.coverage.loaded),
        "sections": sections,
        "argmax": agreement.argmax,
        "torch_argmax": agreement.torch_argmax,
    }


def _largest(section: Section, field: str) -> float:
    return max(getattr(comparison, field) for comparison in section.comparisons)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def page(results: list[dict[str, Any]]) -> str:
    """docs/equivalence.md."""
    lines = [
        "# Equal to PyTorch",
        "",
        "Models measured so far, each against its PyTorch original: the same random weights, "
        "randomized BatchNorm statistics, drawn",
        "scenes. Backbones alone carry the head `fcn32s`. Errors are",
        "relative L2 distances to PyTorch in float64, of JAX and of PyTorch in float32, its worst "
        "of four correct runs (oneDNN on and off,",
        "contiguous and channels_last). *Factor* is JAX's error in units of PyTorch's, or of a "
        "few roundings (2^-21) where that is less,",
        "at the worst tensor. Each cell is the worst of the seeds. The criterion, "
        "`fcn_jax/verify/compare.py`, allows a factor of 2 for",
        "layers and logits, 3 for gradients, and 10 after training; a tensor over its limit is "
        "compared again on other inputs, as a ReLU's",
        "input within rounding of zero makes a correct gradient jump. Where PyTorch's own float32 "
        "runs are off by half or more there is",
        "nothing to hold JAX against: from 50 layers on, and in the paper's FCNs with drawn "
        "weights, twenty steps on small batches are as",
        "chaotic as that for many tensors.",
        "",
        "Made by `python -m benchmarks.equivalence`; one model by `fcn-jax verify --model NAME "
        "--grad --train-steps 20`.",
        "",
        "| model | tensors | worst layer by itself, factor | logits: JAX / PyTorch | argmax agrees "
        "| gradients: JAX / PyTorch, factor | after training: JAX / PyTorch, factor | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        runs = result["runs"]

        def worst(title: str, field: str, runs: list[dict[str, Any]] = runs) -> Any:
            found = [
                run["sections"][name][field]
                for run in runs
                for name in run["sections"]
                if name == title
            ]
            return max(found) if None not in found else math.inf

        layer = max(
            (run["sections"]["layers, isolated"] for run in runs),
            key=lambda s: s["factor"] or math.inf,
        )
        trained = f"training, after step {result['train_steps']}"
        height, width = result["size"]
        lines.append(
            f"| `{result['model']}` | {runs[0]['tensors']} | `{layer['worst']}`, "
            f"{layer['factor']:.2f} "
            f"| {worst('logits', 'error'):.1e} / {worst('logits', 'torch_error'):.1e} "
            f"| {min(run['argmax'] for run in runs):.4%} / "
            f"{min(run['torch_argmax'] for run in runs):.4%} "
            f"| {worst('gradients', 'error'):.1e} / {worst('gradients', 'torch_error'):.1e}, "
            f"{worst('gradients', 'factor'):.2f} "
            f"| {worst(trained, 'error'):.1e} / {worst(trained, 'torch_error'):.1e}, "
            f"{worst(trained, 'factor'):.2f} "
            f"| {len(runs)}, {result['batch']}x{height}x{width}, {result['train_steps']} steps"
            + (f" at rate {result['train_lr']:g}" if result["model"] in TRAIN_LR else "")
            + "".join(f", {name} {value}" for name, value in result.get("options", {}).items())
            + " |"
        )
    versions = sorted({json.dumps(result["environment"]["versions"]) for result in results})
    lines += [
        "",
        "Versions: "
        + "; ".join(", ".join(f"{k} {v}" for k, v in json.loads(text).items()) for text in versions)
        + ".",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, keep the figures, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="default: all")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--train-steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--page", action="store_true", help="only write the page from the results at hand"
    )
    args = parser.parse_args()
    process.configure_process(trains=False)  # as `fcn-jax verify` does
    if not args.page:
        for name in args.models or all_models():
            result = measure(name, tuple(args.size), args.batch, args.train_steps, args.seeds)
            write_json(RESULTS / f"{name.replace(':', '_os')}.json", result)
    found = {
        result["model"]: result
        for result in (json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")))
    }
    order = [name for name in all_models() if name in found]
    order += [name for name in found if name not in order]
    write_text(PAGE, page([found[name] for name in order]))


if __name__ == "__main__":
    main()
