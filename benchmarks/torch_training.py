"""Train the network of a recipe in PyTorch and evaluate it.

    python -m benchmarks.torch_training shapes
    python -m benchmarks.torch_training camvid --data CAMVID --weights resnet18.pth --epochs 1
    python -m benchmarks.torch_training --run runs/camvid --workdir runs/camvid-torch

The network starts with the same parameters as in the library and trains on the same batches, with
the recipe's losses, optimizer, schedule and averages; see `benchmarks.torch_recipe`. With `--run`,
the recipe is that of a run of `fcn-jax train`, and the scores of both are printed side by side.
Settings that are not supported are rejected, so that both sides always train with the same recipe.
`--workdir` writes `config.json`, `versions.json` and `metrics.jsonl` as `fcn-jax train` does, for
`fcn-jax report` and `benchmarks.results_page`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.arguments import Parser
from benchmarks.torch_recipe import TorchTraining
from fcn_jax import config, recipes
from fcn_jax.data.pipeline import eval_examples
from fcn_jax.eval.metrics import Scores
from fcn_jax.eval.protocols import D2L, Native
from fcn_jax.runtime import versions
from fcn_jax.runtime.atomic import write_json
from fcn_jax.train.inputs import open_inputs
from fcn_jax.train.records import Records
from fcn_jax.train.settings import protocols


@dataclasses.dataclass(frozen=True)
class Result:
    """Figures of a run in PyTorch.

    Attributes:
        losses: of each step.
        scores: by epoch, from 1, where the recipe evaluates; and after the last epoch.
        epoch_seconds: of each epoch, without evaluations.
        also: by epoch and protocol, the scores by the protocols of `eval.also`.
    """

    losses: list[float]
    scores: dict[int, Scores]
    epoch_seconds: list[float]
    also: dict[int, dict[str, Scores]]


def train(recipe: config.Config, epochs: int | None = None, workdir: Path | None = None) -> Result:
    """Train and evaluate.

    Args:
        recipe: the recipe.
        epochs: stop after this number of epochs; the schedule stays the same.
        workdir: new directory for settings, versions and records, or None.

    Raises:
        SystemExit: the recipe has settings that are not supported here.
    """
    first, *others = protocols(recipe)
    if not all(isinstance(protocol, Native | D2L) for protocol in (first, *others)):
        raise SystemExit("this benchmark evaluates by the protocols native and d2l only")
    inputs = open_inputs(recipe)
    recipe, epoch_steps = inputs.config, inputs.epoch_steps
    entered = time.perf_counter()
    training, batches = TorchTraining(inputs), inputs.batches()
    records = None if workdir is None else _open_records(workdir, recipe)
    result = Result([], {}, [], {})
    last = min(epochs or recipe.train.epochs, recipe.train.epochs)
    classes = inputs.val.classes

    def write(step: int, event: str, **record: Any) -> None:
        if records is not None:
            records.write(step=step, event=event, epoch=step / epoch_steps, **record)

    try:
        write(0, "compile", setup_seconds=time.perf_counter() - entered, compile_seconds=0.0)
        for epoch in range(1, last + 1):
            began = time.perf_counter()
            result.losses.extend(training.step(next(batches)) for _ in range(epoch_steps))
            result.epoch_seconds.append(time.perf_counter() - began)
            step, seconds = epoch * epoch_steps, result.epoch_seconds[-1] / epoch_steps
            for number in range(step - epoch_steps + 1, step + 1):
                if number % recipe.train.log_every_steps == 0 or number == step:
                    loss = result.losses[number - 1]
                    write(number, "train", loss=loss, step_seconds=seconds)
            line = f"epoch {epoch}: loss {np.mean(result.losses[-epoch_steps:]):.4f}"
            if epoch % recipe.train.eval_every_epochs == 0 or epoch == last:
                began = time.perf_counter()
                scores = training.scores(first.examples(eval_examples(inputs.val)))
                also = {
                    other.name: training.scores(other.examples(eval_examples(inputs.val)))
                    for other in others
                }
                result.scores[epoch], result.also[epoch] = scores, also
                table = {name: other.to_dict(classes) for name, other in also.items()}
                write(
                    step,
                    "val",
                    seconds=time.perf_counter() - began,
                    weights="raw" if training.average is None else "ema",
                    **scores.to_dict(classes),
                    **({"also": table} if table else {}),
                )
                line += f", val {scores.summary()}"
                for name, other in also.items():
                    line += f", val by {name} {other.summary()}"
            print(f"{line}, {result.epoch_seconds[-1]:.1f} s", flush=True)
        finished = last == recipe.train.epochs
        write(last * epoch_steps, "end", finished=finished, seconds=time.perf_counter() - entered)
    finally:
        batches.close()
        if records is not None:
            records.close()
    return result


def _open_records(workdir: Path, recipe: config.Config) -> Records:
    if workdir.exists() and any(workdir.iterdir()):
        raise SystemExit(f"{workdir}: exists and is not empty; name another directory")
    workdir.mkdir(parents=True, exist_ok=True)
    made_with = {**versions.environment(), "framework": "pytorch"}
    made_with["packages"] = {**made_with["packages"], "torch": torch.__version__}
    write_json(workdir / "config.json", json.loads(recipe.to_json()))
    write_json(workdir / "versions.json", made_with)
    return Records(workdir / "metrics.jsonl", 0)


def side_by_side(run: Path, result: Result) -> str:
    """A table of the scores of a run of `fcn-jax train` and of the same recipe in PyTorch."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    ours = {round(each["epoch"]): each for each in records if each["event"] == "val"}
    lines = ["epoch   mIoU: JAX  PyTorch   pixel accuracy: JAX  PyTorch"]
    for epoch, scores in result.scores.items():
        if epoch in ours:
            found = ours[epoch]
            lines.append(
                f"{epoch:5}  {found['miou']:10.4f} {scores.miou:8.4f}   "
                f"{found['pixel_accuracy']:19.4f} {scores.pixel_accuracy:8.4f}"
            )
    return "\n".join(lines)


def _recipe(args: Any) -> config.Config:
    settings = [*args.set]
    for key, value in (("init.reinit", args.reinit), ("init.weights", args.weights)):
        if value:
            settings.append(f"{key}={json.dumps(value)}")
    if args.data:
        settings.append(f"data.root={json.dumps(args.data)}")
    if not args.run:
        return config.parse(recipes.override(recipes.read_recipe(args.recipe), settings))
    table = recipes.read_run(args.run).model_dump(mode="json")
    return config.parse(recipes.override(table, settings), str(args.run))


def main() -> None:
    """Train, evaluate and print one JSON object."""
    parser = Parser("benchmarks.torch_training", __doc__)
    parser.add_recipe(optional=True)
    parser.add_argument("--run", type=Path, help="a run of fcn-jax train, whose recipe is used")
    parser.add_argument("--weights", help="initial weights, as in init.weights")
    parser.add_argument(
        "--reinit",
        action="append",
        default=[],
        metavar="PATTERN",
        help="parameters to reinitialize, as in init.reinit; may be repeated",
    )
    parser.add_argument(
        "--epochs", type=int, help="stop after this number of epochs; the schedule stays the same"
    )
    parser.add_argument("--workdir", type=Path, help="new directory for settings and records")
    args = parser.parse_args()
    if (args.recipe is None) == (args.run is None):
        parser.error("give a recipe or --run")
    recipe = _recipe(args)
    result = train(recipe, args.epochs, args.workdir)
    if args.run:
        print(side_by_side(args.run, result))
    scores = result.scores[max(result.scores)]
    also = {
        name: {"miou": found.miou, "pixel_accuracy": found.pixel_accuracy}
        for name, found in result.also[max(result.also)].items()
    }
    figures = {
        "torch": torch.__version__,
        "recipe": args.recipe or str(args.run),
        "seed": recipe.train.seed,
        "epochs": len(result.epoch_seconds),
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        **({"also": also} if also else {}),
        "epoch_seconds": result.epoch_seconds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
