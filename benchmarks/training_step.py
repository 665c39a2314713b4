"""Time the training step of a recipe in the library and in PyTorch, in turn.

    python -m benchmarks.training_step camvid --data CAMVID --rounds 8

Both start with the same parameters and train on the same batches. The losses and times of each
round are printed, then the medians and their ratio. The time of an epoch is that of its steps,
because input is read during a step. A row for each recipe is written to
benchmarks/results/training_step_cpu.json; other rows in it stay.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path

from flax import nnx

from benchmarks.arguments import Parser
from benchmarks.jax_tasks import compiled_step
from benchmarks.record import RESULTS, environment, keep, prepare_backend
from benchmarks.torch_recipe import TorchTraining
from fcn_jax import compiler_options, config, recipes
from fcn_jax.data.pipeline import steps_per_epoch, train_batches
from fcn_jax.data.transforms import Augment
from fcn_jax.models.build import build
from fcn_jax.plugins import registry
from fcn_jax.runtime import process
from fcn_jax.train import groups, optim
from fcn_jax.train import step as train_step


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
    recipe = config.parse(recipes.override(recipes.read_recipe(args.recipe), args.set), args.recipe)
    dataset = registry.default().dataset(recipe.data.dataset)
    source = dataset.open(Path(args.data) if args.data else None, recipe.data.train_split)
    preprocess = registry.default().backbone(recipe.model.backbone).preprocess
    augment = Augment.of(recipe.data, recipe.augment)
    batches = train_batches(
        source, augment=augment, batch_size=recipe.data.batch_size, seed=recipe.train.seed
    )
    epoch_steps = steps_per_epoch(source, recipe.data.batch_size)
    steps = epoch_steps * recipe.train.epochs

    training = TorchTraining(recipe, source.classes, steps)
    spec = dataclasses.replace(recipe.model, num_classes=len(source.classes))
    model = build(spec, rngs=nnx.Rngs(recipe.train.seed))
    state, step = train_step.make(
        model,
        optim.make(recipe.optim, steps, groups.assign(recipe.optim, nnx.state(model, nnx.Param))),
        preprocess,
    )

    first = next(batches)
    began = time.perf_counter()
    compiled = compiled_step(step, state, first, compiler_options())
    compile_seconds = time.perf_counter() - began

    seconds: dict[str, list[float]] = {"jax": [], "torch": []}
    for number in range(args.rounds + 1):
        batch = first if number == 0 else next(batches)
        began = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax_loss = float(metrics["loss"])
        middle = time.perf_counter()
        torch_loss = training.step(batch)
        ended = time.perf_counter()
        print(
            f"JAX: loss {jax_loss:.5f}, {middle - began:.2f} s; "
            f"PyTorch: loss {torch_loss:.5f}, {ended - middle:.2f} s",
            flush=True,
        )
        if number:  # the first step warms up
            seconds["jax"].append(middle - began)
            seconds["torch"].append(ended - middle)
    batches.close()
    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    row = {
        "step_seconds": medians,
        "epoch_seconds": {name: median * epoch_steps for name, median in medians.items()},
        "jax_over_torch": medians["jax"] / medians["torch"],
        "compile_seconds": compile_seconds,
        "environment": environment("cpu"),
    }
    keep(args.out, {"recipe": args.recipe, "set": args.set}, row)
    print(
        f"step: JAX {medians['jax']:.3f} s, PyTorch {medians['torch']:.3f} s, "
        f"ratio {row['jax_over_torch']:.2f}\nwritten: {args.out}"
    )


if __name__ == "__main__":
    main()
