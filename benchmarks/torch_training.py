"""Train a recipe's network in PyTorch, from the same values on the same batches, and score it.

The yardstick of the recipes' headers:

    python -m benchmarks.torch_training shapes
    python -m benchmarks.torch_training camvid --data CAMVID --weights resnet18.pth --epochs 1

ResNet-18 with the chapter's two layers, channels_last, float32. Only the recipes' own settings for
SGD and AdamW without rules are understood; anything else is refused, so that no comparison is made
of two different recipes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flax import nnx

from fcn_jax import config, recipes, to_torch
from fcn_jax.api import Preprocess
from fcn_jax.convert.load import init_from
from fcn_jax.convert.tables import tables
from fcn_jax.data.pipeline import eval_examples, steps_per_epoch, train_batches
from fcn_jax.data.transforms import Augment
from fcn_jax.eval.metrics import ConfusionMatrix
from fcn_jax.models.build import build as build_spec
from fcn_jax.plugins import registry
from fcn_jax.pytorch.reference import import_torchvision


def build(recipe: config.Config, num_classes: int) -> tuple[torch.nn.Module, set[str]]:
    """d2l's network with the recipe's initial values, and the names of the drawn kernels."""
    fresh: set[str] = set()
    spec = dataclasses.replace(recipe.model, num_classes=num_classes)
    model = build_spec(spec, rngs=nnx.Rngs(recipe.train.seed))
    if recipe.init.weights:
        record = init_from(model, recipe.init.weights, recipe.init.reinit)
        print(record, flush=True)
        table = tables(model.spec)["model", "d2l"]
        fresh = {
            table.to_torch(path)[0]
            for path in record.reinit
            if path.startswith("backbone.") and path.endswith(".kernel")
        }
    trunk = import_torchvision().models.resnet18(weights=None)
    network = torch.nn.Sequential(*list(trunk.children())[:-2])
    network.add_module("final_conv", torch.nn.Conv2d(512, num_classes, 1))
    network.add_module(
        "transpose_conv",
        torch.nn.ConvTranspose2d(num_classes, num_classes, 64, stride=32, padding=16),
    )
    network.load_state_dict(
        {name: torch.from_numpy(value) for name, value in to_torch(model, key_format="d2l").items()}
    )
    return network, fresh


def make_optimizer(
    recipe: config.Config, network: torch.nn.Module, fresh: set[str]
) -> torch.optim.Optimizer:
    """PyTorch's optimizer of the recipe; `fresh` parameters learn at `init.reinit_lr_mult`."""
    settings = recipe.optim
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in network.named_parameters() if name not in fresh]}
    ]
    if fresh:
        kernels = [p for name, p in network.named_parameters() if name in fresh]
        groups.append({"params": kernels, "lr": settings.lr * recipe.init.reinit_lr_mult})
    if settings.param_groups or settings.clip_norm or settings.schedule != "poly":
        raise SystemExit(
            "this comparison understands neither optim.param_groups nor another schedule than poly"
        )
    if settings.name == "adamw":
        return torch.optim.AdamW(
            groups,
            settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.SGD(
        groups, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def to_input(images: np.ndarray, preprocess: Preprocess) -> torch.Tensor:
    """u8[N,H,W,3] -> normalized f32[N,3,H,W] in channels_last."""
    scaled = torch.from_numpy(images).float() * (preprocess.scale / 255)
    normalized = (scaled - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    return normalized.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def main() -> None:
    """Train, score, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--reinit", action="append", default=[])
    parser.add_argument(
        "--epochs", type=int, help="stop after so many; the schedule stays the recipe's"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    settings = [*args.set, f"init.reinit={json.dumps(args.reinit)}"]
    if args.weights:
        settings.append(f"init.weights={json.dumps(args.weights)}")
    recipe = config.parse(recipes.override(recipes.read_recipe(args.recipe), settings), args.recipe)
    dataset = registry.default().dataset(recipe.data.dataset)
    root = Path(args.data) if args.data else None
    train_source, val_source = (
        dataset.open(root, recipe.data.train_split),
        dataset.open(root, recipe.data.val_split),
    )
    preprocess = registry.default().backbone(recipe.model.backbone).preprocess
    data = recipe.data
    augment = Augment(
        data.crop_size, data.scale_range, data.flip, data.brightness, data.contrast, data.saturation
    )
    batches = train_batches(
        train_source,
        augment=augment,
        batch_size=data.batch_size,
        seed=recipe.train.seed,
        num_workers=data.num_workers,
    )
    epoch_steps = steps_per_epoch(train_source, data.batch_size)
    total = epoch_steps * recipe.train.epochs
    epochs = min(args.epochs or recipe.train.epochs, recipe.train.epochs)

    network, fresh = build(recipe, len(train_source.classes))
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(recipe, network, fresh)
    warmup = recipe.optim.warmup_steps

    def factor(step: int) -> float:
        return (1 - step / total) ** recipe.optim.power * (
            min((step + 1) / warmup, 1.0) if warmup else 1.0
        )

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses, epoch_seconds = [], []
    for _ in range(epochs):
        began = time.perf_counter()
        for _ in range(epoch_steps):
            batch = next(batches)
            optimizer.zero_grad(set_to_none=True)
            logits = network(to_input(batch["image"], preprocess))
            loss = torch.nn.functional.cross_entropy(
                logits, torch.from_numpy(batch["mask"]).long(), ignore_index=255
            )
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        epoch_seconds.append(time.perf_counter() - began)
        print(
            f"epoch {len(epoch_seconds)}: loss {np.mean(losses[-epoch_steps:]):.4f}, "
            f"{epoch_seconds[-1]:.1f} s",
            flush=True,
        )

    network.eval()
    matrix = ConfusionMatrix(len(train_source.classes))
    with torch.inference_mode():
        for example in eval_examples(val_source):
            height, width = example.image.shape[:2]
            logits = network(to_input(example.image[None], preprocess))[0, :, :height, :width]
            matrix.add(example.mask, logits.argmax(0).numpy().astype(np.uint8))
    scores = matrix.scores()
    batches.close()
    figures = {
        "torch": torch.__version__,
        "recipe": args.recipe,
        "seed": recipe.train.seed,
        "epochs": epochs,
        "miou": scores.miou,
    }
    print(
        json.dumps(
            {**figures, "pixel_accuracy": scores.pixel_accuracy, "epoch_seconds": epoch_seconds}
        )
    )


if __name__ == "__main__":
    main()
