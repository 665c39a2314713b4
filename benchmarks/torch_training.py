"""Train the network of a recipe in PyTorch and evaluate it.

    python -m benchmarks.torch_training shapes
    python -m benchmarks.torch_training camvid --data CAMVID --weights resnet18.pth --epochs 1
    python -m benchmarks.torch_training --run runs/camvid

The network starts with the same parameters as in the library and trains on the same batches, with
the recipe's losses, optimizer, schedule and averages; see `benchmarks.torch_recipe`. With `--run`,
the recipe is that of a run of `fcn-jax train`, and the scores of both are printed side by side.
Settings that are not supported are rejected, so that both sides always train with the same recipe.
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
from fcn_jax.train.inputs import open_inputs
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


def train(recipe: config.Config, epochs: int | None = None) -> Result:
    """Train and evaluate.

    Args:
        recipe: the recipe.
        epochs: stop after this number of epochs; the schedule stays the same.

    Raises:
        SystemExit: the recipe has settings that are not supported here.
    """
    first, *others = protocols(recipe)
    if not all(isinstance(protocol, Native | D2L) for protocol in (first, *others)):
        raise SystemExit("this benchmark evaluates by the protocols native and d2l only")
    inputs = open_inputs(recipe)
    recipe, epoch_steps = inputs.config, inputs.epoch_steps
    training, batches = TorchTraining(inputs), inputs.batches()
    result = Result([], {}, [], {})
    last = min(epochs or recipe.train.epochs, recipe.train.epochs)
    try:
        for epoch in range(1, last + 1):
            began = time.perf_counter()
            result.losses.extend(training.step(next(batches)) for _ in range(epoch_steps))
            result.epoch_seconds.append(time.perf_counter() - began)
            line = f"epoch {epoch}: loss {np.mean(result.losses[-epoch_steps:]):.4f}"
            if epoch % recipe.train.eval_every_epochs == 0 or epoch == last:
                result.scores[epoch] = training.scores(first.examples(eval_examples(inputs.val)))
                line += f", val {result.scores[epoch].summary()}"
                result.also[epoch] = {
                    other.name: training.scores(other.examples(eval_examples(inputs.val)))
                    for other in others
                }
                for name, scores in result.also[epoch].items():
                    line += f", val by {name} {scores.summary()}"
            print(f"{line}, {result.epoch_seconds[-1]:.1f} s", flush=True)
    finally:
        batches.close()
    return result


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
    args = parser.parse_args()
    if (args.recipe is None) == (args.run is None):
        parser.error("give a recipe or --run")
    recipe = _recipe(args)
    result = train(recipe, args.epochs)
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
