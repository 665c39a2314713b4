"""Train the network of a recipe in PyTorch and evaluate it.

    python -m benchmarks.torch_training shapes
    python -m benchmarks.torch_training camvid --data CAMVID --weights resnet18.pth --epochs 1

The comments at the top of the recipes quote its results. The network is d2l's, in channels_last and
float32. It starts with the same parameters as in the library and trains on the same batches. The
optimizers are SGD and AdamW without param groups or gradient clipping, with the schedule "poly".
Other settings are rejected, so that both sides always train with the same recipe.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flax import nnx

from benchmarks.arguments import Parser
from benchmarks.networks import torch_d2l
from fcn_jax import config, recipes
from fcn_jax.api import Preprocess
from fcn_jax.convert.load import init_from
from fcn_jax.convert.tables import tables
from fcn_jax.data.pipeline import eval_examples, steps_per_epoch, train_batches
from fcn_jax.data.transforms import Augment
from fcn_jax.eval.metrics import ConfusionMatrix
from fcn_jax.models.build import build as build_spec
from fcn_jax.plugins import registry


def build(recipe: config.Config, num_classes: int) -> tuple[torch.nn.Module, set[str]]:
    """Build the network with the recipe's initial parameters.

    Returns:
        The network, channels_last and in train mode, and the names of the backbone's
        reinitialized kernels.
    """
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
    return torch_d2l(model), fresh


def make_optimizer(
    recipe: config.Config, network: torch.nn.Module, fresh: set[str]
) -> torch.optim.Optimizer:
    """Build the recipe's optimizer in PyTorch.

    Args:
        recipe: the recipe.
        network: the network.
        fresh: names of the parameters whose learning rate is multiplied by `init.reinit_lr_mult`.

    Raises:
        SystemExit: the recipe has settings that are not supported here.
    """
    settings = recipe.optim
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in network.named_parameters() if name not in fresh]}
    ]
    if fresh:
        kernels = [p for name, p in network.named_parameters() if name in fresh]
        groups.append({"params": kernels, "lr": settings.lr * recipe.init.reinit_lr_mult})
    if settings.param_groups or settings.clip_norm or settings.schedule != "poly":
        raise SystemExit(
            "this benchmark supports neither optim.param_groups nor optim.clip_norm, and of "
            'optim.schedule only "poly"'
        )
    if recipe.loss != config.Config().loss or recipe.model.task != "multiclass":
        raise SystemExit("this benchmark supports no loss except cross entropy without options")
    if settings.name == "adamw":
        return torch.optim.AdamW(
            groups,
            settings.lr,
            betas=settings.betas or (0.9, 0.999),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.SGD(
        groups, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def to_input(images: np.ndarray, preprocess: Preprocess) -> torch.Tensor:
    """Normalize u8[N,H,W,3] to f32[N,3,H,W] in channels_last."""
    scaled = torch.from_numpy(images).float() * (preprocess.scale / 255)
    normalized = (scaled - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    return normalized.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def take_step(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Mapping[str, np.ndarray],
    preprocess: Preprocess,
) -> float:
    """Train on one batch and return its loss."""
    optimizer.zero_grad(set_to_none=True)
    logits = network(to_input(batch["image"], preprocess))
    loss = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(batch["mask"]).long(), ignore_index=255
    )
    loss.backward()
    optimizer.step()
    return float(loss.item())


def main() -> None:
    """Train, evaluate and print one JSON object."""
    parser = Parser("benchmarks.torch_training", __doc__)
    parser.add_recipe()
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
    settings = [*args.set, f"init.reinit={json.dumps(args.reinit)}"]
    if args.weights:
        settings.append(f"init.weights={json.dumps(args.weights)}")
    recipe = config.parse(recipes.override(recipes.read_recipe(args.recipe), settings), args.recipe)
    dataset = registry.default().dataset(recipe.data.dataset)
    root = Path(args.data) if args.data else None
    train_source = dataset.open(root, recipe.data.train_split)
    val_source = dataset.open(root, recipe.data.val_split)
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
            losses.append(take_step(network, optimizer, batch, preprocess))
            scheduler.step()
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
