"""Time a recipe's training step here and in PyTorch, in turn, on the same values and batches.

    python -m benchmarks.training_step camvid --data CAMVID --rounds 8

Prints both losses of each round, then the medians and their ratio; an epoch is so many steps, as
input is read while a step computes. Written to benchmarks/results/training_step_cpu.json, a row for
each recipe; others stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import jax
import torch
from flax import nnx

from benchmarks import torch_training
from benchmarks.record import RESULTS, environment, keep, prepare_backend
from fcn_jax import compiler_options, config, recipes
from fcn_jax.data.pipeline import steps_per_epoch, train_batches
from fcn_jax.data.transforms import Augment
from fcn_jax.models.build import build
from fcn_jax.plugins import registry
from fcn_jax.runtime import process
from fcn_jax.runtime.memory import trim_malloc
from fcn_jax.train import optim
from fcn_jax.train import step as train_step


def main() -> None:
    """Print a line per round and the medians; keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "training_step_cpu.json", help="JSON file"
    )
    args = parser.parse_args()
    process.configure_process(trains=True)  # as `fcn-jax train` does; PyTorch gains by it too
    prepare_backend("cpu")
    recipe = config.parse(recipes.override(recipes.read_recipe(args.recipe), args.set), args.recipe)
    dataset = registry.default().dataset(recipe.data.dataset)
    source = dataset.open(Path(args.data) if args.data else None, recipe.data.train_split)
    preprocess = registry.default().backbone(recipe.model.backbone).preprocess
    augment = Augment(recipe.data.crop_size, recipe.data.scale_range, recipe.data.flip)
    batches = train_batches(
        source, augment=augment, batch_size=recipe.data.batch_size, seed=recipe.train.seed
    )
    epoch_steps = steps_per_epoch(source, recipe.data.batch_size)
    steps = epoch_steps * recipe.train.epochs

    network, fresh = torch_training.build(recipe, len(source.classes))
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch_training.make_optimizer(recipe, network, fresh)
    spec = dataclasses.replace(recipe.model, num_classes=len(source.classes))
    model = build(spec, rngs=nnx.Rngs(recipe.train.seed))
    state, step = train_step.make(
        model, optim.make(recipe.optim, steps, nnx.state(model, nnx.Param)), preprocess
    )

    first = next(batches)
    began = time.perf_counter()
    compiled = (
        jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
        .lower(state, first)
        .compile()
    )
    compile_seconds = time.perf_counter() - began
    trim_malloc()

    seconds: dict[str, list[float]] = {"jax": [], "torch": []}
    for number in range(args.rounds + 1):
        batch = first if number == 0 else next(batches)
        began = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax_loss = float(metrics["loss"])
        middle = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        logits = network(torch_training.to_input(batch["image"], preprocess))
        loss = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(batch["mask"]).long(), ignore_index=255
        )
        loss.backward()
        optimizer.step()
        torch_loss = loss.item()
        ended = time.perf_counter()
        print(
            f"loss {jax_loss:.5f} {torch_loss:.5f}   seconds {middle - began:.2f} "
            f"{ended - middle:.2f}",
            flush=True,
        )
        if number:  # the first warms up
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
        f"a step: {medians['jax']:.3f} s, PyTorch's {medians['torch']:.3f} s, "
        f"{row['jax_over_torch']:.2f} times as long\n{args.out}"
    )


if __name__ == "__main__":
    main()
