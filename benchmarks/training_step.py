"""Time the training step of a recipe in the library and in PyTorch, in turn.

    python -m benchmarks.training_step camvid --data CAMVID --rounds 8

Both start with the same parameters and train on the same batches, with the recipe's losses,
optimizer, schedule, averages and frozen layers; settings that PyTorch's side lacks are rejected.
The losses of each step are printed, then the medians of the times and their ratio. The time of an
epoch is that of its steps, because input is read during a step. A row for each recipe is written to
benchmarks/results/training_step_cpu.json; other rows in it stay.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.arguments import Parser
from benchmarks.jax_tasks import compiled_step
from benchmarks.record import RESULTS, environment, keep, prepare_backend
from benchmarks.torch_recipe import TorchTraining
from fcn_jax import compiler_options, config, recipes
from fcn_jax.runtime import process
from fcn_jax.train import setup
from fcn_jax.train.inputs import Inputs, open_inputs


class JaxTraining:
    """The training of a recipe in the library, as `TorchTraining` is in PyTorch.

    Attributes:
        setup: what is trained.
        state: after the steps that were taken.
        compile_seconds: time to trace and compile the step.
    """

    def __init__(self, inputs: Inputs, batch: Mapping[str, np.ndarray]) -> None:
        """Compile the step for batches like `batch`."""
        recipe, classes = inputs.config, inputs.train.classes
        self.setup, self.state, step = setup.make(
            recipe, classes, inputs.total_steps, inputs.pixels
        )
        began = time.perf_counter()
        self._step = compiled_step(step, self.state, batch, compiler_options())
        self.compile_seconds = time.perf_counter() - began

    def step(self, batch: Mapping[str, np.ndarray]) -> float:
        """Train on one batch and return its loss."""
        self.state, metrics = self._step(self.state, batch)
        jax.block_until_ready(self.state)
        return float(metrics["loss"])


def measure(recipe: config.Config, rounds: int) -> dict[str, Any]:
    """Train both sides in turn for one step to warm up and `rounds` timed steps.

    Returns:
        The losses of all steps and the figures, ready for JSON.

    Raises:
        SystemExit: the recipe has settings that are not supported in PyTorch.
    """
    inputs = open_inputs(recipe)
    batches = inputs.batches()
    try:
        first = next(batches)
        torch_side, jax_side = TorchTraining(inputs), JaxTraining(inputs, first)
        losses: dict[str, list[float]] = {"jax": [], "torch": []}
        seconds: dict[str, list[float]] = {"jax": [], "torch": []}
        for number in range(rounds + 1):
            batch = first if number == 0 else next(batches)
            for name, side in (("jax", jax_side), ("torch", torch_side)):
                began = time.perf_counter()
                losses[name].append(side.step(batch))
                if number:  # the first step warms up
                    seconds[name].append(time.perf_counter() - began)
            print(", ".join(f"{name}: loss {x[-1]:.5f}" for name, x in losses.items()), flush=True)
    finally:
        batches.close()
    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    return {
        "losses": losses,
        "step_seconds": medians,
        "epoch_seconds": {name: x * inputs.epoch_steps for name, x in medians.items()},
        "jax_over_torch": medians["jax"] / medians["torch"],
        "compile_seconds": jax_side.compile_seconds,
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = Parser("benchmarks.training_step", __doc__)
    parser.add_recipe()
    parser.add_argument("--rounds", type=int, default=8, help="timed steps")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "training_step_cpu.json", help="JSON file"
    )
    args = parser.parse_args()
    process.configure_process(trains=True)  # as `fcn-jax train` does; PyTorch benefits too
    prepare_backend("cpu")
    table = recipes.override(recipes.read_recipe(args.recipe), args.set)
    recipe = config.parse(table, args.recipe)
    if args.data:
        recipe = recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"root": args.data})}
        )
    row = measure(recipe, args.rounds)
    key = {"recipe": args.recipe, "set": args.set}
    keep(args.out, key, row | {"environment": environment("cpu")})
    step = row["step_seconds"]
    print(
        f"step: JAX {step['jax']:.3f} s, PyTorch {step['torch']:.3f} s, "
        f"ratio {row['jax_over_torch']:.2f}\nwritten: {args.out}"
    )


if __name__ == "__main__":
    main()
